"""Rollouts of flow models with a ControlNet, and their replay by the learner's module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.rollout import PairBatch, RolloutSettings, rollout
from learner.objective import ObjectiveSettings
from learner.replay import PolicyMicro, Replay
from restoration.base_models.interface import SamplerSettings
from tests.restoration.released_models import MODELS


@pytest.mark.parametrize("target", ["enhanced", "sampled"])
@pytest.mark.parametrize(("name", "guidance"), [("sd3", 3.0), ("flux", 1.0)])
@torch.no_grad()
def test_a_flow_models_rollout_replays_with_ratio_1(tmp_path: Path, name: str, guidance: float, target: str) -> None:
    model = MODELS[name](tmp_path)
    lq, gt = torch.rand(2, 2, 3, 64, 128, generator=torch.Generator().manual_seed(3))
    batch = PairBatch(["a", "b"], [(0, 0, 64, 128)] * 2, [False] * 2, lq, gt)
    sampler = SamplerSettings(steps=4, noise_level=0.7, guidance_scale=guidance)
    settings = RolloutSettings(
        images_per_batch=2, rollouts_per_image=2, crop=0, action_target=target, storage_dtype="bfloat16"
    )
    rolled = rollout(model, batch, sampler, settings, torch.Generator().manual_seed(0))
    decisions = rolled.schedule.decisions
    assert len(decisions) == 3 and decisions[0].timestep == 1000
    replay = Replay(model, model.schedule(sampler), ObjectiveSettings(), guidance)
    condition = model.condition(lq).repeat_interleave(2)
    for position, step in enumerate(decisions):
        old, zero = rolled.log_probs[:, position], torch.zeros(4)
        states, targets = (v[:, position].float() for v in (rolled.states, rolled.targets))
        micro = PolicyMicro(states, targets, old, zero, zero, zero, (step.index,) * 4, condition)
        ratio = (replay.log_prob_and_mean(micro)[0] - old).exp()
        assert torch.isfinite(ratio).all() and (ratio - 1).abs().max() <= 1e-6
        assert targets.std(0).max() > 0  # rollouts of an image differ
