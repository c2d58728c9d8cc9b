"""Costs from the records of a run: of records that the model itself would make, they are the model's own again."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.plan.measured import measured
from cluster.plan.model import REWARD, Costs, Counts, Loop, PlanError, iteration, step_s

LOOP = Loop(groups=8, images=2, staleness=1, policy_rows=64, sft_rows=32, micro_batch=8)
COUNTS = Counts(2, 2, {REWARD: 2})
COSTS = Costs(
    2.0, publish_s=0.1, score_s={REWARD: 1.2}, blocks=3, policy_s=0.3, sft_s=0.3, condition_s=0.05, step_s=0.2
)


def records(count: int, slow: float = 1.0) -> list[dict[str, Any]]:
    """Of a run that is as fast as the model says, but for its first two iterations."""
    took, items = iteration(LOOP, COSTS, COUNTS).seconds, LOOP.items
    learn = step_s(LOOP, COSTS, COUNTS.ranks) - COSTS.step_s
    one = {
        "groups": 8.0,
        "rollout_s": items * COSTS.rollout_s * slow,
        "reward_wait_s": items * COSTS.score_s[REWARD] * 2 / 3 * slow,  # three blocks on two replicas
        "publish_s": items * COSTS.publish_s,
        "open_s": 4 * COSTS.condition_s,
        "learn_s": learn,
        "learner_wait_s": took - learn - COSTS.step_s,
        "iteration_s": took,
    }
    cold = {name: 9 * value if name.endswith("_s") else value for name, value in one.items()}
    return [{"kind": "train", "iteration": i + 1, **(cold if i < 2 else one)} for i in range(count)]


def of(found: list[dict[str, Any]], evaluation: float = 0.0) -> Any:
    return measured(found, LOOP, COUNTS, [REWARD], 3, evaluation, {"store_s": 0.01}, "runs/a")


def test_what_a_run_has_measured_gives_back_what_it_was_made_of() -> None:
    found = of(records(8))
    assert found.iterations == 6
    for name in ("rollout_s", "publish_s", "policy_s", "sft_s", "condition_s", "step_s"):
        assert getattr(found.costs, name) == pytest.approx(getattr(COSTS, name)), name
    assert found.costs.score_s[REWARD] == pytest.approx(COSTS.score_s[REWARD])
    assert found.costs.store_s == 0.01
    assert found.predicted_s == pytest.approx(found.took_s)


def test_the_first_iterations_and_ones_that_were_interrupted_are_not_taken_for_usual() -> None:
    usual, found = of(records(9)), records(9)
    found[5] |= {"iteration_s": 900.0, "learn_s": 300.0}
    assert of(found).took_s == pytest.approx(usual.took_s)
    assert of(found).costs.policy_s == pytest.approx(usual.costs.policy_s)
    assert usual.spread["rollout_s"][2] < found[0]["rollout_s"]


def test_evaluations_are_counted_as_rollouts_of_their_pictures() -> None:
    assert of(records(8), evaluation=0.5).costs.evaluation_s == pytest.approx(0.5 * COSTS.rollout_s)


def test_a_wait_for_scores_is_never_taken_for_more_work_than_replicas_had_time_for() -> None:
    found = records(8)
    for record in found:
        record["reward_wait_s"] = 1e4
    took, costs = found[-1]["iteration_s"], of(found).costs
    assert costs.score_s[REWARD] == pytest.approx(2 * took / LOOP.items)
    assert iteration(LOOP, costs, COUNTS).parts[REWARD] == pytest.approx(took)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_too_few_iterations_are_told_in_a_line(count: int) -> None:
    with pytest.raises(PlanError, match=rf"^runs/a: {count} iterations, .* 3 at least .*; let it train on"):
        of(records(count))


def test_a_run_without_actors_is_told() -> None:
    found = [{k: v for k, v in record.items() if k != "rollout_s"} for record in records(8)]
    with pytest.raises(PlanError, match="^runs/a: its records have no rollout_s"):
        of(found)
