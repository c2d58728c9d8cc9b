"""The frames of a chain: what the model takes the clean picture for after each step, and what that is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from restoration.base_models.interface import SamplerSettings
from restoration.chain import chain
from restoration.images import to_uint8
from restoration.metrics import protocol
from restoration.restore import restore, seeded_generator
from restoration.tiling import Tiling
from restoration.transition import predict_x0
from tests.restoration.tiny_model import TinyModel

SAMPLER = SamplerSettings(steps=3)
LQ = torch.rand(3, 21, 30, generator=torch.Generator().manual_seed(0))
GT = torch.rand(3, 21, 30, generator=torch.Generator().manual_seed(1))


class Brightness:
    """A scorer that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.asked.append(images)
        return images.mean((1, 2, 3), dtype=np.float32)


def test_a_chain_is_the_input_and_an_estimate_a_step_and_ends_in_what_restoring_gives() -> None:
    model, score = TinyModel(gain=0.5, noise=0.3), Brightness()
    frames = chain(model, LQ, SAMPLER, seeded_generator("x", 0), score, GT)
    assert [f.step for f in frames] == [0, 1, 2, 3] and math.isnan(frames[0].timestep)
    assert [f.timestep for f in frames[1:]] == [s.timestep for s in model.schedule(SAMPLER).steps]
    assert all(f.image.shape == (21, 30, 3) and f.image.dtype == np.uint8 for f in frames)
    restored = restore(model, LQ, SAMPLER, seeded_generator("x", 0))
    assert np.array_equal(frames[-1].image, to_uint8(restored[None])[0])
    assert np.array_equal(frames[0].image, to_uint8(LQ[None])[0])
    assert len({f.image.tobytes() for f in frames}) == 4


def test_the_figures_of_a_frame_are_those_of_its_picture() -> None:
    score = Brightness()
    frames = chain(TinyModel(noise=0.3), LQ, SAMPLER, seeded_generator("x", 0), score, GT)
    assert len(score.asked) == 1 and len(score.asked[0]) == 4
    for frame in frames:
        assert frame.score == pytest.approx(float(frame.image.mean()), abs=1e-3)
        truth = protocol("lowlight_rgb").psnr(frame.image[None], to_uint8(GT[None]))[0]
        assert frame.psnr == pytest.approx(float(truth))
    without = chain(TinyModel(noise=0.3), LQ, SAMPLER, seeded_generator("x", 0), score)
    assert [f.psnr for f in without] == [None] * 4 and [f.score for f in without] == [f.score for f in frames]


def test_an_estimate_is_the_decoded_x0_that_the_network_predicts_at_that_step() -> None:
    model = TinyModel(noise=0.3)
    seen: list[Tensor] = []
    denoise = model.denoise

    def watched(x_t: Tensor, timestep: float | Tensor, condition: object, guidance_scale: float) -> Tensor:
        output = denoise(x_t, timestep, condition, guidance_scale)  # type: ignore[arg-type]
        seen.append(predict_x0(model.schedule(SAMPLER).steps[len(seen)], output, x_t))
        return output

    model.denoise = watched  # type: ignore[method-assign, assignment]
    frames = chain(model, LQ, SAMPLER, seeded_generator("x", 0), Brightness())
    for frame, x0 in zip(frames[1:], seen, strict=True):
        assert np.array_equal(frame.image, to_uint8(model.decode(x0))[0, :21, :30])


def test_in_tiles_a_chain_also_ends_in_what_restoring_gives() -> None:
    model, tiling = TinyModel(noise=0.3), Tiling(16, 8)
    frames = chain(model, LQ, SAMPLER, seeded_generator("x", 0), Brightness(), tiling=tiling)
    restored = restore(model, LQ, SAMPLER, seeded_generator("x", 0), tiling=tiling)
    assert np.array_equal(frames[-1].image, to_uint8(restored[None])[0]) and len(frames) == 4


def test_what_can_not_be_measured_is_refused() -> None:
    def chained(model: TinyModel, score: object = None, gt: Tensor | None = None) -> object:
        return chain(model, LQ, SAMPLER, seeded_generator("x", 0), score or Brightness(), gt)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="a ground truth of 20x21 for a picture of 30x21"):
        chained(TinyModel(), gt=GT[..., :20])
    with pytest.raises(ValueError, match=r"values of shape \(1,\) for 4 pictures"):
        chained(TinyModel(), lambda images: np.zeros(1, np.float32))
    with pytest.raises(FloatingPointError, match="the estimate of step 1 is not finite"):
        chained(TinyModel(gain=math.nan))
