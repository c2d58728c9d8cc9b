"""What a role is said to need follows from what that role computes in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cluster.run import memory_plan
from cluster.run.flow import flow
from cluster.run.memory_plan import RoleMemory
from restoration.base_models import ModelFacts, describe
from restoration.metrics.full_reference import device_bytes
from tests.cluster.run.checks.cases import config_of


@pytest.fixture(scope="module")
def facts() -> ModelFacts:
    return describe("models/demo")


@pytest.fixture(autouse=True)
def passes_take_what_a_number_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting activations takes seconds, and is tested where it is done."""

    def acting(*_: Any, dtypes: tuple[torch.dtype, ...], **__: Any) -> dict[str, int]:
        sizes = (dtype.itemsize for dtype in dtypes)
        return dict(zip(("condition", "denoise", "decode"), sizes, strict=True)) | {"held": 0}

    monkeypatch.setattr(memory_plan, "acting", acting)
    monkeypatch.setattr(memory_plan, "training", lambda *_, dtype, **__: dtype.itemsize)


def plan(facts: ModelFacts, *overrides: str) -> tuple[RoleMemory, RoleMemory]:
    config = config_of("objective.recipe=diff_sft", *overrides)  # whose actors need not compute as its ranks do
    actor, rank = memory_plan.memory_plan(config, facts, flow(config, (64, 64), 8, 4, 5), [(64, 64)])
    return actor, rank


def test_weights_are_kept_as_the_roles_own_products_are_taken(facts: ModelFacts) -> None:
    full, rank = plan(facts)
    narrow = ("rollout.denoise_dtype=bfloat16", "adapt.frozen_dtype=auto")
    half, wide = plan(facts, *narrow)
    assert 2 * half.kept["frozen weights"] == full.kept["frozen weights"] and wide.kept == rank.kept
    same, narrowed = plan(facts, *narrow, "learner.dtype=bfloat16")
    assert same.kept == half.kept and 2 * narrowed.kept["frozen weights"] == rank.kept["frozen weights"]
    cast, _ = plan(facts, "rollout.denoise_dtype=bfloat16", "adapt.frozen_dtype=float32", "adapt.mode=full")
    assert cast.kept["casts"] > 0 == full.kept["casts"]
    cast, _ = plan(facts, "rollout.denoise_dtype=bfloat16", "adapt.frozen_dtype=float32")
    assert cast.kept["frozen weights"] == full.kept["frozen weights"]


def test_an_evaluation_is_counted_in_the_type_that_it_computes_in(facts: ModelFacts) -> None:
    def evaluated(*overrides: str) -> int:
        return plan(facts, *overrides)[0].passes["evaluation"]

    assert (evaluated(), evaluated("evaluation.dtype=bfloat16")) == (4, 2)
    # Weights in 16 bits leave no choice.
    assert evaluated("adapt.frozen_dtype=bfloat16", "rollout.denoise_dtype=bfloat16", "learner.dtype=bfloat16") == 2


def test_a_term_that_the_actors_compute_is_held_beside_any_pass(facts: ModelFacts) -> None:
    without, rank = plan(facts)
    terms = "reward.terms=[{scorer: lite0_levels}, {scorer: psnr}, {scorer: lpips, name: near, params: {weights: w}}]"
    actor, same = plan(facts, terms)
    network, work = device_bytes("lpips", config_of().rollout.rollouts_per_image, 64, 64)
    added = {name: size for name, size in actor.kept.items() if size and name not in without.kept}
    assert added == {"near: network": network, "near: work, beside a pass": work} and network > 9e6 < 3 * work
    assert actor.device_bytes == without.device_bytes + network + work and same.kept == rank.kept
