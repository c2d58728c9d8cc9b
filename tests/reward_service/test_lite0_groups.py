"""What the shipped scorer's head learns of a base model's own rollouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from reward_service.training.lite0 import group_loss
from reward_service.training.variants import Variants

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


def test_within_a_group_the_loss_asks_for_the_order_of_qualities_however_small_they_differ() -> None:
    truth = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    right, flat, wrong = truth * 0.05, torch.zeros_like(truth), -truth * 0.05
    losses = [group_loss(scores, truth, 0.03).item() for scores in (right, flat, wrong)]
    assert losses[0] < losses[1] < losses[2]
    # Neither the level of the group nor the size of its differences counts, only how it is ordered.
    torch.testing.assert_close(group_loss(right, 4 + truth * 1e-3, 0.03).item(), losses[0])
    scores = torch.zeros(1, 4, requires_grad=True)
    group_loss(scores, truth, 0.03).backward()
    assert scores.grad is not None and (scores.grad[0].diff() < 0).all()


def test_versions_end_with_one_group_of_rollouts_by_a_number_of_steps_that_was_asked_for() -> None:
    variants = Variants(DEMO, ("rain",), (1, 2))
    assert {sampler.steps for sampler in variants.samplers} == {1, 2}
    clean = np.full((64, 64, 3), 0.5, np.float32)
    clean[16:48, 16:48] = (0.9, 0.2, 0.1)
    versions = variants.draw(clean, 3, np.random.default_rng(0), rollouts=4)
    assert len(versions) == 3 + 3 + 3 + 4
    group = np.stack(versions[-4:])
    apart = np.abs(group - group.mean(0)).mean()
    assert 0 < apart < np.abs(np.stack(versions[:3]) - clean).mean()  # one input, several draws of noise
    assert all(v.dtype == np.float32 and v.min() >= 0 and v.max() <= 1 for v in versions)
    assert len(Variants().draw(clean, 5, np.random.default_rng(0))) == 5
