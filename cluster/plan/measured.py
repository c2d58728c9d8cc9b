"""Costs of a recipe as a run of it has measured them (`metrics.jsonl`). Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.plan.model import Costs, Counts, Loop, PlanError, alone, iteration

SKIPPED = 2  # first iterations: caches are cold and nothing is under way yet
LEAST = 3  # iterations behind them
PHASES = ("rollout_s", "reward_wait_s", "publish_s", "learn_s", "iteration_s")


@dataclass(frozen=True)
class Measured:
    """What a run tells.

    Attributes:
        costs: of one process of each role; what scoring takes is an upper bound (`_score_s`).
        iterations: that they come from.
        spread: (least, median, largest) seconds of each of `PHASES` in an iteration, those of actors summed over them.
        predicted_s, took_s: an iteration of the run's own counts by the model, and the median that it took.
    """

    costs: Costs
    iterations: int
    spread: Mapping[str, tuple[float, float, float]]
    predicted_s: float
    took_s: float


def measured(
    records: Sequence[Mapping[str, Any]],
    loop: Loop,
    counts: Counts,
    scored: Sequence[str],
    blocks: int,
    evaluation_s: float,
    moving: Mapping[str, float],
    where: str,
) -> Measured:
    """From the `train` records of a run.

    Args:
        loop, counts: of that run.
        scored: services whose scores its rollouts wait for; blocks: requests of an item.
        evaluation_s: actors' seconds of evaluations, an iteration on average, per second of an item's rollout.
        moving: costs that the records don't tell.
        where: names the run in errors.

    Raises:
        PlanError: too few iterations, or records without phase times.
    """
    used = [r for r in records if all(_is_number(r.get(name)) for name in ("learn_s", "iteration_s"))][SKIPPED:]
    if len(used) < LEAST:
        raise PlanError(
            f"{where}: {len(records)} iterations, and phase times are taken from {LEAST} at least behind the first "
            f"{SKIPPED}; let it train on, or plan by --gpu-kind"
        )

    def total(name: str) -> float:
        return sum(float(r.get(name) or 0.0) for r in used)

    items = sum(float(r.get("groups") or loop.groups) for r in used) / loop.images
    rollout, wait, publish = (total(name) / items for name in ("rollout_s", "reward_wait_s", "publish_s"))
    if not rollout:
        raise PlanError(f"{where}: its records have no rollout_s; it is no run of actors, plan by --gpu-kind")
    learn, opened = _median(used, "learn_s"), _median(used, "open_s")
    policy, sft = loop.micros(counts.ranks)
    each = max(0.0, learn - opened) / max(1, policy + sft)
    whole = [float(r["iteration_s"]) for r in used]
    # The mean, since iterations may take turns in being long; without those in which something was started again.
    took = statistics.mean(s for s in whole if s <= 3 * statistics.median(whole))
    # What is neither waited for nor learned in: publication, the snapshot, the driver.
    between = [float(r["iteration_s"]) - float(r["learn_s"]) - float(r.get("learner_wait_s") or 0.0) for r in used]
    score = {name: _score_s(wait, counts.replicas[name], blocks, total("iteration_s") / items) for name in scored}
    costs = Costs(
        rollout_s=rollout,
        publish_s=publish,
        score_s=score,
        blocks=blocks,
        evaluation_s=evaluation_s * rollout,
        policy_s=each,
        sft_s=each,
        condition_s=opened / -(-loop.groups // counts.ranks),
        step_s=max(0.0, statistics.median(between)),
        **moving,
    )
    spread = {name: _spread(used, name) for name in PHASES}
    return Measured(costs, len(used), spread, iteration(loop, costs, counts).seconds, took)


def _score_s(wait: float, replicas: int, blocks: int, apart: float) -> float:
    """Seconds of one replica for an item, at most.

    Records tell how long items waited, not how long they were scored: here as if each had the replicas to itself. And
    replicas can't have scored for longer than there was time between two items.
    """
    return min(wait / alone(replicas, blocks), apart * replicas)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _median(records: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.median(float(r.get(name) or 0.0) for r in records)


def _spread(records: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, float]:
    values = [float(r.get(name) or 0.0) for r in records]
    return min(values), statistics.median(values), max(values)
