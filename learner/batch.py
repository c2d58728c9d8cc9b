"""From groups of rollouts to the work of one optimiser step, the same on every rank and in any order of arrival."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from learner.advantage import RewardRow, RewardTracks
from learner.difficulty import difficulty_weights
from learner.objective import ObjectiveSettings
from trajectories.schema import Trajectories

PairLoader = Callable[[str], tuple[Tensor, Tensor]]
"""image_id -> (lq, gt), float32 [3, H, W] in [0, 1]."""


class BatchError(ValueError):
    """Trajectories that can't be trained on together or at all."""


@dataclass(frozen=True)
class PolicyItem:
    """One decision to replay: row `row` of group `group` at position `position` of its steps.

    `surrogate_weight` and `kl_weight` already hold the division by the whole batch, so that terms just add up.
    """

    group: int
    row: int
    position: int
    advantage: float
    surrogate_weight: float
    kl_weight: float


@dataclass(frozen=True)
class SftItem:
    """One sample of L_diff; `index` is its place in the whole batch and seeds its noise."""

    group: int
    index: int
    weight: float


@dataclass(frozen=True)
class GlobalBatch:
    """All groups of an iteration, sorted by group id, and for each its rows' advantages by step index."""

    groups: tuple[Trajectories, ...]
    advantages: tuple[tuple[dict[int, float], ...], ...]
    reward_version: str

    @property
    def rows(self) -> int:
        return sum(len(g.trajectory_ids) for g in self.groups)


@dataclass(frozen=True)
class Work:
    """The items of one optimiser step."""

    policy: tuple[PolicyItem, ...]
    sft: tuple[SftItem, ...]
    difficulty: Tensor  # float64 [rows]
    rows: int


Item = TypeVar("Item")


def assemble(groups: Sequence[Trajectories], tracks: RewardTracks, fingerprint: str) -> GlobalBatch:
    """Check the groups and compute the advantages of all their rows; the rewards enter the tracks.

    Raises:
        BatchError: no groups, a group twice, another schedule than the learner's, or mixed reward versions.
    """
    ordered = tuple(sorted(groups, key=lambda g: g.meta.group_id))
    if not ordered:
        raise BatchError("batch: no trajectories")
    ids = [g.meta.group_id for g in ordered]
    if len(set(ids)) != len(ids):
        raise BatchError(f"batch: a group twice among {ids[:4]}...; each is consumed exactly once")
    for group in ordered:
        if group.meta.scheduler_fingerprint != fingerprint:
            raise BatchError(
                f"group {group.meta.group_id} was rolled out with schedule {group.meta.scheduler_fingerprint}, the "
                f"learner replays {fingerprint}: give actors and learner the same sampler settings"
            )
    versions = sorted({g.meta.reward_version for g in ordered})
    if len(versions) > 1:
        raise BatchError(f"batch: rewards of versions {versions} can't be normalised together; drop the older groups")
    try:
        rows = [row for group in ordered for row in _reward_rows(group)]
        flat = iter(tracks.advantages(rows, versions[0]))
    except ValueError as error:
        raise BatchError(str(error)) from error
    advantages = tuple(tuple(next(flat) for _ in group.trajectory_ids) for group in ordered)
    return GlobalBatch(ordered, advantages, versions[0])


def plan_updates(batch: GlobalBatch, updates: int) -> list[list[int]]:
    """Groups of each of `updates` optimiser steps, as even as they divide, in group order."""
    count = len(batch.groups)
    updates = min(updates, count)
    bounds = [round(i * count / updates) for i in range(updates + 1)]
    return [list(range(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]


def make_work(batch: GlobalBatch, chosen: Sequence[int], objective: ObjectiveSettings) -> Work:
    """Items and weights of one optimiser step over the groups `chosen` (Eq. 9 and 10).

    A trajectory's J and KL are means over its trained steps; every term is divided by the number of trajectories.
    """
    norm = "error_l1" if objective.difficulty_norm == "l1" else "error_l2"
    try:
        difficulty = difficulty_weights(torch.cat([getattr(batch.groups[g], norm) for g in chosen]))
    except ValueError as error:
        raise BatchError(str(error)) from error
    rows = len(difficulty)
    rl, sft = objective.rl_weights(difficulty).tolist(), objective.sft_weights(difficulty).tolist()
    policy_items, sft_items = [], []
    index = 0
    for g in chosen:
        steps = [int(s) for s in batch.groups[g].step_index]
        group_items = []
        for row, values in enumerate(batch.advantages[g]):
            for position, step in enumerate(steps):
                if step in values:
                    share = 1 / (rows * len(values))
                    item = PolicyItem(g, row, position, values[step], rl[index] * share, objective.kl_beta * share)
                    group_items.append(item)
            sft_items.append(SftItem(g, index, sft[index] / rows))
            index += 1
        # Step by step, as the rollout evaluated them: all rows of a group at one timestep are neighbours.
        policy_items += sorted(group_items, key=lambda i: (i.position, i.row))
    return Work(
        tuple(policy_items) if objective.needs_policy else (),
        tuple(sft_items) if objective.needs_sft else (),
        difficulty,
        rows,
    )


def share(items: Sequence[Item], rank: int, world: int, micro: int) -> list[list[Item]]:
    """Micro-batches of one rank: contiguous, of at most `micro` items, and as many on every rank.

    The collectives of ZeRO-2 and 3 run in every micro-batch, so ranks must do the same number; a rank that has run
    out of items gets empty ones, which the caller fills with an item of weight 0.
    """
    per_rank = math.ceil(len(items) / world)
    mine = list(items[rank * per_rank : (rank + 1) * per_rank])
    return [mine[i * micro : (i + 1) * micro] for i in range(math.ceil(per_rank / micro))]


def cut(image: Tensor, crop: tuple[int, int, int, int], flip: bool) -> Tensor:
    """The crop (y, x, h, w) of [3, H, W], then mirrored left-right if `flip`.

    Raises:
        BatchError: the crop leaves the image.
    """
    y, x, h, w = crop
    if y < 0 or x < 0 or y + h > image.shape[-2] or x + w > image.shape[-1]:
        raise BatchError(f"crop {crop} leaves the image of {tuple(image.shape[-2:])}: the data set changed since")
    part = image[..., y : y + h, x : x + w]
    return part.flip(-1) if flip else part


def _reward_rows(group: Trajectories) -> list[RewardRow]:
    steps = tuple(int(s) for s in group.step_index)
    scored, rewards = group.scored.tolist(), group.rewards.tolist()
    gt = None if group.gt_reward is None else float(group.gt_reward)
    return [
        RewardRow(
            trajectory_id=name,
            image_id=group.meta.image_id,
            steps=steps,
            rewards={s: rewards[k][p] for p, s in enumerate(steps) if scored[k][p]},
            gt_reward=gt,
        )
        for k, name in enumerate(group.trajectory_ids)
    ]
