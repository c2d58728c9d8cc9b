"""A denoising chain to look at: what the model takes the clean picture for after each step, and what that is worth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.figures import Pixels, ScoreFunction
from restoration.images import to_uint8
from restoration.metrics import DEFAULT_PROTOCOL, protocol
from restoration.restore import restore
from restoration.tiling import Tiling
from restoration.transition import Step


@dataclass(frozen=True)
class Frame:
    """A picture of a chain, uint8 [H, W, 3].

    Attributes:
        step: 0 is the degraded input, 1 the estimate after the noisiest step, the last the result.
        timestep: that the network was given; NaN of the input.
        score: of the scorer, NaN where that can't be had.
        psnr: in dB against the ground truth; None where there is none.
    """

    image: Pixels
    step: int
    timestep: float
    score: float
    psnr: float | None = None


@torch.no_grad()
def chain(
    model: BaseModel,
    lq: Tensor,
    sampler: SamplerSettings,
    generator: torch.Generator,
    score: ScoreFunction,
    gt: Tensor | None = None,
    *,
    protocol_name: str = DEFAULT_PROTOCOL,
    device: torch.device | str = "cpu",
    tiling: Tiling | None = None,
    image_ids: tuple[str, ...] = (),
) -> tuple[Frame, ...]:
    """The input and the clean estimates x0 of all steps, decoded as the result is, which is the last of them.

    Args:
        model: on `device` already.
        lq, gt: float32 [3, H, W] in [0, 1], of equal size.
        generator: as of `restore`: an equal one gives the picture that `restore` gives.
        score: uint8 [N, H, W, 3] to float32 [N]; asked once, for all frames together.

    Raises:
        ValueError: a ground truth of another size, a scorer that gives another number of values than pictures, and
            what `restore.sample` and the scorer raise.
        FloatingPointError: an estimate that isn't finite.
    """
    if gt is not None and gt.shape != lq.shape:
        raise ValueError(
            f"a ground truth of {gt.shape[-1]}x{gt.shape[-2]} for a picture of {lq.shape[-1]}x{lq.shape[-2]}: they "
            "must be of equal size"
        )
    images, timesteps = [lq], [math.nan]

    def on_estimate(step: Step, image: Tensor) -> None:
        if not torch.isfinite(image).all():
            raise FloatingPointError(f"the estimate of step {len(images)} is not finite; take float32 or bfloat16")
        images.append(image)
        timesteps.append(step.timestep)

    restore(model, lq, sampler, generator, device, tiling, image_ids, on_estimate)
    pixels = to_uint8(torch.stack(images))
    scores = np.asarray(score(pixels), dtype=np.float64)
    if scores.shape != (len(pixels),):
        raise ValueError(f"the scorer gave values of shape {scores.shape} for {len(pixels)} pictures")
    psnr: list[float | None] = [None] * len(pixels)
    if gt is not None:
        truth: NDArray[np.uint8] = np.repeat(to_uint8(gt[None]), len(pixels), axis=0)
        psnr = [float(value) for value in protocol(protocol_name).psnr(pixels, truth)]
    values = zip(pixels, timesteps, scores, psnr, strict=True)
    return tuple(Frame(image, i, t, float(s), p) for i, (image, t, s, p) in enumerate(values))
