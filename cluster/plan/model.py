"""What an iteration takes, from what its parts cost and how many processes share them. Pure arithmetic.

An iteration trains on a batch of B groups (images with their rollouts), which actors roll out in items of a few:

    actor     denoise, item 1 | denoise, item 2 | ...            each item waits for its scores beside the next
    replica                     score, item 1   | score ...
    store                                         in ...  out
    rank                                                   gather | step, publish weights | step ...

All of that goes on at once, as far as admission lets it: `(staleness + 1) B` groups may be under way that no finished
step has used (`cluster.run.admission`). So an iteration takes what its busiest part takes, or, where the window is too
small to keep any of them busy, a share of the whole way of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

SLOTS = 2  # items of an actor: one denoises, another waits for its scores (`cluster.run.flow.SLOTS_PER_ACTOR`)
ACTORS, RANKS, REWARD = "actors", "ranks", "reward"
ADMISSION, STORE, INTAKE, DRIVER, CHECKPOINTS = "admission", "store", "intake", "driver", "checkpoints"


class PlanError(ValueError):
    """There is no plan; the message says why and what to do."""


@dataclass(frozen=True)
class Loop:
    """The shape of an iteration, as the recipe has it.

    Attributes:
        groups: B, of a batch.
        images: groups of an item.
        staleness: versions that a group may lie behind.
        policy_rows, sft_rows: decisions that are replayed, and samples of L_diff, of a batch.
        micro_batch: rows of one forward of a rank.
        updates, epochs: optimiser steps that a batch is divided into, passes over it.
    """

    groups: int
    images: int
    staleness: int
    policy_rows: int
    sft_rows: int
    micro_batch: int
    updates: int = 1
    epochs: int = 1

    def __post_init__(self) -> None:
        for name, least in (("groups", 1), ("images", 1), ("micro_batch", 1), ("updates", 1), ("epochs", 1)):
            if getattr(self, name) < least:
                raise PlanError(f"{name}={getattr(self, name)}: at least {least}")
        for name in ("staleness", "policy_rows", "sft_rows"):
            if getattr(self, name) < 0:
                raise PlanError(f"{name}={getattr(self, name)}: 0 or more")
        if self.groups % self.images:
            raise PlanError(f"groups={self.groups}: a multiple of the {self.images} images of an item")

    @property
    def items(self) -> int:
        """Rollout batches of an iteration."""
        return self.groups // self.images

    def micros(self, ranks: int) -> tuple[int, int]:
        """Micro-batches of each rank in an iteration: of decisions, of samples of L_diff."""
        updates = min(self.updates, self.groups)

        def of(rows: int) -> int:
            share = -(-rows // (updates * ranks))
            return self.epochs * updates * -(-share // self.micro_batch)

        return of(self.policy_rows), of(self.sft_rows)


@dataclass(frozen=True)
class Costs:
    """Seconds of one process, with its device to itself.

    Attributes:
        rollout_s: of an actor for an item, from the pictures to what is scored.
        publish_s: of an item's records into the store, beside the next item.
        score_s: of one replica for an item's pictures, by service; `blocks`: requests that these are sent as, so that
            an item is never on more replicas at once.
        weights_s: of an actor that takes new weights, once an iteration.
        evaluation_s: of actors, all together, an iteration on average.
        policy_s, sft_s: of a rank for a micro-batch, forward and backward.
        condition_s: of a rank for the conditions of a group.
        step_s: of a step, however many ranks there are: optimiser, publication, what the driver does between two.
        reduce_s: besides, where there are several ranks.
        checkpoint_s: of writing, beside the steps, an iteration on average.
        store_s, intake_s: of the store for a group, in and out; of a rank to fetch and check one.
        driver_s: of the driver for an item.
    """

    rollout_s: float
    publish_s: float = 0.0
    score_s: Mapping[str, float] = field(default_factory=dict)
    blocks: int = 1
    weights_s: float = 0.0
    evaluation_s: float = 0.0
    policy_s: float = 0.0
    sft_s: float = 0.0
    condition_s: float = 0.0
    step_s: float = 0.0
    reduce_s: float = 0.0
    checkpoint_s: float = 0.0
    store_s: float = 0.0
    intake_s: float = 0.0
    driver_s: float = 0.0

    def __post_init__(self) -> None:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("score_s", "blocks")}
        values |= {f"score_s[{name}]": value for name, value in self.score_s.items()}
        for name, value in values.items():
            if not 0 <= value < math.inf:
                raise PlanError(f"{name}={value}: a number of seconds, 0 or more")
        if self.blocks < 1:
            raise PlanError(f"blocks={self.blocks}: at least 1")


@dataclass(frozen=True)
class Counts:
    """Processes of each role; `replicas` by service."""

    actors: int
    ranks: int
    replicas: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, count in {ACTORS: self.actors, RANKS: self.ranks, **self.replicas}.items():
            if count < 1:
                raise PlanError(f"{name}={count}: at least 1")


@dataclass(frozen=True)
class Iteration:
    """What an iteration takes.

    Attributes:
        parts: seconds of an iteration that each part needs; `ADMISSION`: what the window allows at best.
        first_s: of the first iteration, when nothing is under way yet.
    """

    parts: Mapping[str, float]
    first_s: float

    @property
    def seconds(self) -> float:
        return max(self.parts.values())

    @property
    def bottleneck(self) -> str:
        """The part that an iteration waits for."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def per_hour(self) -> float:
        """Iterations an hour."""
        return 3600 / self.seconds if self.seconds else math.inf

    def run_s(self, iterations: int) -> float:
        """Seconds of so many, the first of which fills the pipeline."""
        return self.first_s + max(0, iterations - 1) * self.seconds


def iteration(loop: Loop, costs: Costs, counts: Counts) -> Iteration:
    """An iteration of these counts, once everything is under way.

    Raises:
        PlanError: a service that is scored by has no count of replicas.
    """
    if missing := sorted(set(costs.score_s) - set(counts.replicas)):
        raise PlanError(f"{missing[0]}: no number of replicas")
    items, actors = loop.items, counts.actors
    step = step_s(loop, costs, counts.ranks)
    gather = -(-loop.groups // counts.ranks) * costs.intake_s
    latency = batch_s(loop, costs, counts)
    cycle = max(costs.rollout_s, (costs.rollout_s + _beside(costs, counts)) / SLOTS)
    # An actor that gets nothing in an iteration takes no weights either.
    rolling = items * cycle + min(items, actors) * costs.weights_s
    parts = {ACTORS: (rolling + costs.evaluation_s) / actors}
    parts |= {reward_part(name): items * each / counts.replicas[name] for name, each in costs.score_s.items()}
    parts |= {
        RANKS: step,
        ADMISSION: (latency + gather + step) / (loop.staleness + 1),
        STORE: loop.groups * costs.store_s,
        INTAKE: gather,
        DRIVER: items * costs.driver_s,
        CHECKPOINTS: costs.checkpoint_s,
    }
    return Iteration(parts, latency + gather + step)


def reward_part(service: str) -> str:
    """What the part of a service is called."""
    return f"{REWARD} {service}" if service and service != REWARD else REWARD


def step_s(loop: Loop, costs: Costs, ranks: int) -> float:
    """Seconds from one step to the next, where its batch is there."""
    policy, sft = loop.micros(ranks)
    opened = -(-loop.groups // ranks) * costs.condition_s
    reduced = costs.reduce_s if ranks > 1 else 0.0
    return costs.step_s + opened + policy * costs.policy_s + sft * costs.sft_s + reduced


def batch_s(loop: Loop, costs: Costs, counts: Counts) -> float:
    """Seconds until a batch is rolled out, scored and published, where nothing else is under way."""
    beside = _beside(costs, counts)
    most = -(-loop.items // counts.actors)  # items of the busiest actor
    rolled = _rolled_s(most, costs.rollout_s, beside)
    queues = [loop.items * each / counts.replicas[name] for name, each in costs.score_s.items()]
    scored = costs.rollout_s + max(queues, default=0.0) + costs.publish_s
    stored = costs.rollout_s + loop.groups * costs.store_s / 2
    return costs.weights_s + max(rolled, scored, stored)


def alone(replicas: int, blocks: int) -> float:
    """The share of an item's scoring that it waits for, with the replicas to itself: blocks go to one each, in turn."""
    return -(-blocks // replicas) / blocks


def _beside(costs: Costs, counts: Counts) -> float:
    """What an item takes behind its rollout, beside the next one."""
    waits = [each * alone(counts.replicas[name], costs.blocks) for name, each in costs.score_s.items()]
    return max(waits, default=0.0) + costs.publish_s


def _rolled_s(items: int, rollout: float, beside: float) -> float:
    """Seconds of one actor for so many items, two of which it may have at once."""
    if beside <= rollout:
        return items * rollout + beside
    pairs, odd = divmod(items, SLOTS)
    return (pairs + odd) * (rollout + beside) + (0.0 if odd else rollout)
