"""Full-reference terms of a reward: how near a restored picture is to its ground truth, higher is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.metrics.protocols import DEFAULT_PROTOCOL, LPIPS_SIDE, SSIM_WINDOW, Images, protocol

LPIPS_BATCH = 8
AT_ONCE = 8
"""Pairs that `psnr` and `ssim` hold in float64, some ten times, while they compare them."""


@dataclass(frozen=True)
class FullReference:
    """One full-reference scorer.

    Attributes:
        name: a key of `FULL_REFERENCE`.
        version: changes whenever the same pair could get another score.
        least_side: pixels a side that pictures must have.
        score: restored and true pictures, both uint8 [N, H, W, 3] -> float32 [N].
    """

    name: str
    version: str
    least_side: int
    score: Callable[[np.ndarray, np.ndarray], np.ndarray]


# name -> (its parameter, and the default of it; least side)
FULL_REFERENCE: dict[str, tuple[tuple[str, str | None] | None, int]] = {
    "psnr": (("protocol", DEFAULT_PROTOCOL), 1),
    "ssim": (("protocol", DEFAULT_PROTOCOL), SSIM_WINDOW),
    "reconstruction": (None, 1),
    "lpips": (("weights", None), LPIPS_SIDE),
}


def full_reference(name: str, device: str = "cpu", **params: Any) -> FullReference:
    """A full-reference scorer by its name.

    Args:
        name: `psnr` (dB), `ssim`; `reconstruction`, the paper's ablation "Rec.": -‖x̂ - g‖, the L2 norm over all
            values of [0, 1]; `lpips`: -LPIPS on AlexNet with published weights of the user's.
        device: where a network computes.
        params: `protocol` of psnr and ssim, `weights` (a folder) of lpips.

    Raises:
        ValueError: unknown name or parameters.
        CheckpointError: weights that can't be read.
    """
    value, version = _parameter(name, params), version_of(name, **params)
    if name == "reconstruction":
        score: Callable[[np.ndarray, np.ndarray], np.ndarray] = _reconstruction
    elif name == "lpips":
        from restoration.metrics.lpips import Lpips  # which brings torchvision in

        score = partial(_lpips, Lpips.from_published(Path(value)).to(device), device)
    else:
        score = partial(_by_protocol, getattr(protocol(value), name))
    return FullReference(name, version, FULL_REFERENCE[name][1], score)


def version_of(name: str, **params: Any) -> str:
    """The version of such a scorer, without making it; of lpips a digest of its files.

    Raises:
        ValueError, CheckpointError: as `full_reference`.
    """
    value = _parameter(name, params)
    if name == "reconstruction":
        return "reconstruction-1"
    if name == "lpips":
        from restoration.metrics.lpips import published_digest

        return f"lpips-1-{published_digest(Path(value))}"
    return f"{name}-1-{protocol(value).name}"


def device_bytes(name: str, pairs: int, height: int, width: int) -> tuple[int, int]:
    """Bytes that such a scorer keeps on its device, and those of its work on so many pairs at the worst moment.

    Computed from shapes, without a convolution's own workspace; 0 of those that a CPU computes.
    """
    if name != "lpips":
        return 0, 0
    from restoration.activations import LiveBytes
    from restoration.checkpoints import empty
    from restoration.metrics.lpips import Lpips

    metric = empty(Lpips)
    kept = [*metric.parameters(), *metric.buffers()]
    shape = (min(pairs, LPIPS_BATCH), height, width, 3)
    pixels = [torch.empty(shape, dtype=torch.uint8) for _ in range(2)]
    with LiveBytes([*kept, *pixels]) as live:
        _distances(metric, "meta", *pixels)
    return sum(tensor.nbytes for tensor in kept), live.peak


def _parameter(name: str, params: dict[str, Any]) -> str:
    """The value of a scorer's only parameter, "" if it has none."""
    if name not in FULL_REFERENCE:
        raise ValueError(f"no full-reference scorer named {name!r}; choose one of {', '.join(FULL_REFERENCE)}")
    taken = FULL_REFERENCE[name][0]
    unknown = sorted(set(params) - ({taken[0]} if taken else set()))
    if unknown:
        raise ValueError(f"{name} has no parameter {unknown[0]!r}; it takes {taken[0] if taken else 'none'}")
    if taken is None:
        return ""
    value = params.get(taken[0], taken[1])
    if not isinstance(value, str):
        raise ValueError(f"{name} needs params.{taken[0]}, not {value!r}; see docs/reward_terms.md")
    return value


def _by_protocol(metric: Callable[[Images, Images], np.ndarray], images: np.ndarray, truths: np.ndarray) -> np.ndarray:
    starts = range(0, len(images), AT_ONCE)
    parts = [metric(images[i : i + AT_ONCE], truths[i : i + AT_ONCE]) for i in starts]
    return np.concatenate(parts).astype(np.float32)


def _reconstruction(images: np.ndarray, truths: np.ndarray) -> np.ndarray:
    a, b = (torch.from_numpy(x).movedim(-1, 1).float() / 255 for x in (images, truths))
    return np.asarray(-(a - b).flatten(1).norm(dim=1))


def _lpips(
    distance: Callable[[Tensor, Tensor], Tensor], device: str, images: np.ndarray, truths: np.ndarray
) -> np.ndarray:
    parts = []
    for start in range(0, len(images), LPIPS_BATCH):
        pair = (torch.from_numpy(x[start : start + LPIPS_BATCH]) for x in (images, truths))
        parts.append(_distances(distance, device, *pair).neg().cpu())
    return np.asarray(torch.cat(parts).numpy())


def _distances(distance: Callable[[Tensor, Tensor], Tensor], device: str, images: Tensor, truths: Tensor) -> Tensor:
    """uint8 [B, H, W, 3] each -> [B], on the device."""
    a, b = (x.to(device).movedim(-1, 1).float() / 255 for x in (images, truths))
    return distance(a, b)
