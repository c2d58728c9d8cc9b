"""Rolling out a model of one step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actors.rollout import PairBatch, RolloutSettings, rollout
from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.images import to_uint8
from restoration.restore import sample
from restoration.transition import transition
from tests.restoration.released_models import MODELS

SAMPLER = SamplerSettings(steps=1, sigma=0.3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return MODELS["pisa"](tmp_path_factory.mktemp("pisa"))


@torch.no_grad()
@pytest.mark.parametrize("target", ["enhanced", "sampled"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_one_step_model_is_scored_and_trained_on_its_noisy_sample(model: BaseModel, target: str, dtype: str) -> None:
    lq, gt = torch.rand(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = PairBatch(["a"], [(0, 0, 64, 64)], [False], lq, gt)
    settings = RolloutSettings(
        images_per_batch=1, rollouts_per_image=4, crop=0, action_target=target, storage_dtype=dtype
    )
    result = rollout(model, batch, SAMPLER, settings, torch.Generator().manual_seed(1))

    assert result.log_probs.shape == (4, 1) and list(result.blocks) == [0]
    assert not result.shift.any()
    samples = result.targets[:, 0].float()  # its noisy sample, which the image shows
    assert np.array_equal(result.blocks[0], to_uint8(model.decode(samples)))
    assert (samples[0] - samples[1]).abs().mean() > 0.1

    condition = model.condition(lq).repeat_interleave(4)
    (step,) = result.schedule.steps
    state = result.states[:, 0].float()
    replay = transition(step, model.denoise(state, step.timestep, condition, 1.0), state, action=samples)
    assert ((replay.log_prob - result.log_probs[:, 0]).exp() - 1).abs().max() <= 1e-6
    assert (samples - replay.mean).std() == pytest.approx(0.3, rel=0.1)
    if dtype == "float32":
        restored = sample(model, lq, SAMPLER, torch.Generator())
        assert torch.allclose(restored, model.decode(replay.mean[:1]), atol=1e-4)
