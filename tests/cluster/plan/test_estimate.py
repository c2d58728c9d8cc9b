"""Costs from arithmetic and a data sheet: what they scale with, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.plan.estimate import PLUMBING, Arithmetic, Chain, estimated
from cluster.plan.gpus import KINDS, MEMORY, NETWORKS, SCORER, gpu_kind
from cluster.plan.model import REWARD, PlanError

WORK = Arithmetic(
    condition=2e12,
    denoise=1e12,
    decode=2.5e12,
    replay=4e12,
    sft=3e12,
    forward=1e12,
    frozen_bytes=2e9,
    trained=10**7,
    score={REWARD: 1.75e12},
)
CHAIN = Chain(
    images=2,
    rollouts=8,
    steps=50,
    decoded=49,
    decode_batch=4,
    micro_batch=16,
    forwards=0,
    group_bytes=20e6,
    evaluated=15,
    every=10,
    area=2.0,
    checkpoint_every=10,
    bf16=dict.fromkeys(("condition", "denoise", "decode", "replay", "evaluation"), True),
)
H100 = KINDS["h100"]


def test_a_rollout_is_its_conditions_its_steps_and_what_is_decoded() -> None:
    costs = estimated(WORK, CHAIN, H100, {}, PLUMBING)
    flops = 2 * 2e12 + 50 * 16 * 1e12 + 49 * 16 * 2.5e12
    assert costs.rollout_s == pytest.approx(flops / (NETWORKS * H100.bf16))
    assert costs.score_s[REWARD] == pytest.approx(16 * 49 * 1.75e12 / (SCORER * H100.bf16)) and costs.blocks == 49
    assert costs.policy_s == pytest.approx(16 * 4e12 / (NETWORKS * H100.bf16))
    assert costs.evaluation_s == pytest.approx(15 / 10 * 2.0 * (2 + 50 + 2.5) * 1e12 / (NETWORKS * H100.bf16))


def test_a_pass_too_small_for_the_arithmetic_takes_what_reading_the_weights_takes() -> None:
    assert H100.seconds(1e6, 2e9) == pytest.approx(2e9 / (MEMORY * H100.bandwidth))


def test_float32_takes_twice_as_long_and_a_reference_another_forward() -> None:
    full = estimated(WORK, replace(CHAIN, bf16=dict.fromkeys(CHAIN.bf16, False)), H100, {}, PLUMBING)
    plain, more = (estimated(WORK, replace(CHAIN, forwards=n), H100, {}, PLUMBING) for n in (0, 1))
    assert full.rollout_s == pytest.approx(plain.rollout_s * H100.bf16 / H100.tf32)
    assert more.policy_s == pytest.approx(plain.policy_s * 5 / 4)


def test_a_faster_kind_is_never_slower() -> None:
    order = [KINDS[name] for name in ("l4", "a100", "h100", "h200")]
    rollouts = [estimated(WORK, CHAIN, kind, {}, PLUMBING).rollout_s for kind in order]
    assert rollouts == sorted(rollouts, reverse=True)


def test_scorers_whose_arithmetic_is_unknown_take_what_they_are_said_to() -> None:
    costs = estimated(replace(WORK, score={}), CHAIN, H100, {"sharp": 0.005}, PLUMBING)
    assert costs.score_s == {"sharp": pytest.approx(16 * 49 * 0.005)}


def test_a_kind_that_nothing_is_known_of_is_told_with_those_there_are() -> None:
    assert gpu_kind(" H100 ") is H100
    with pytest.raises(PlanError, match=r"^--gpu-kind tpu: nothing is known of it; choose h200, h100, a100.* --from$"):
        gpu_kind("tpu")
