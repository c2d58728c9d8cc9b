"""Arithmetic counted on the meta device is what the same passes take on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from restoration.adapters import AdaptSettings
from restoration.base_models import describe, load
from restoration.flops import Flops, PassFlops, pass_flops

DEMO = Path(__file__).parents[2] / "models" / "demo"
ADAPT = AdaptSettings(mode="full")


@pytest.fixture(scope="module")
def found() -> PassFlops:
    return pass_flops(describe(DEMO).skeleton, ADAPT, 64, 64)


def test_products_and_convolutions_are_counted_as_they_are() -> None:
    with Flops() as counted:
        torch.empty(3, 5, device="meta") @ torch.empty(5, 7, device="meta")
        torch.nn.functional.conv2d(torch.empty(1, 2, 8, 8, device="meta"), torch.empty(4, 2, 3, 3, device="meta"))
    assert counted.total == 2 * 3 * 5 * 7 + 2 * 4 * 2 * 9 * 36


def test_a_model_without_weights_takes_the_arithmetic_of_the_model_itself(found: PassFlops) -> None:
    model = load(DEMO)
    with torch.no_grad():
        with FlopCounterMode(display=False) as conditioned:
            condition = model.condition(torch.zeros(1, 3, 64, 64))
        with FlopCounterMode(display=False) as denoised:
            model.denoise(condition.latent, torch.zeros(1), condition, 1.0)
        with FlopCounterMode(display=False) as decoded:
            model.decode(condition.latent, condition)
    assert found.condition == conditioned.get_total_flops()
    assert found.denoise == denoised.get_total_flops()
    assert found.decode == decoded.get_total_flops()


def test_a_backward_pass_comes_on_top_and_recomputing_activations_is_another_forward(found: PassFlops) -> None:
    skeleton, plain = describe(DEMO).skeleton, found
    recomputed = pass_flops(skeleton, ADAPT, 64, 64, checkpointing=True)
    assert plain.replay == plain.sft > 1.8 * plain.denoise
    assert plain.sft < recomputed.sft <= plain.sft + plain.denoise
    assert not any(p.requires_grad for p in skeleton.vae.parameters()) and recomputed.denoise == plain.denoise
