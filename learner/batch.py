"""From groups of rollouts to the work of one optimiser step, the same on every rank and in any order of arrival."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from learner.advantage import AdvantageError, AdvantageSettings, RewardRow, RewardTracks, trained_steps
from learner.difficulty import difficulty_weights
from learner.objective import ObjectiveSettings
from trajectories.schema import Summary

PairLoader = Callable[[str], tuple[Tensor, Tensor]]
"""image_id -> (lq, gt), float32 [3, H, W] in [0, 1]."""

Shape = tuple[int, ...]
"""Latent (C, h, w) and crop (H, W) of a group: items of equal shape can stand in one micro-batch."""


class BatchError(ValueError):
    """Groups that can't be trained on, together or at all. Without `groups`, the ids to blame, the others could be."""

    def __init__(self, message: str, groups: Collection[str] = ()) -> None:
        super().__init__(message)
        self.groups = tuple(groups)


@dataclass(frozen=True)
class Refused:
    """A group that can't be trained on. `reason` is a word for counters, `detail` says what and where.

    Reasons: "schema" (no valid record), "picture" (its image is missing or broken), "crop" (which leaves the image),
    "batch" (whatever `BatchError` says).
    """

    group_id: str
    reason: str
    detail: str


class PolicyItem(NamedTuple):
    """One decision to replay: row `row` of group `group` at position `position` of its steps.

    `surrogate_weight` and `kl_weight` already hold the division by the whole batch, so that terms just add up.
    """

    group: int
    row: int
    position: int
    advantage: float
    surrogate_weight: float
    kl_weight: float
    shape: Shape


@dataclass(frozen=True, slots=True)
class SftItem:
    """One sample of L_diff; `index` is its place in the whole batch and seeds its noise."""

    group: int
    index: int
    weight: float
    shape: Shape


@dataclass(frozen=True)
class GlobalBatch:
    """All groups of an iteration, sorted by group id, and for each its rows' advantages by step index."""

    groups: tuple[Summary, ...]
    advantages: tuple[tuple[dict[int, float], ...], ...]
    reward_version: str

    @property
    def rows(self) -> int:
        return sum(len(g.trajectory_ids) for g in self.groups)


@dataclass(frozen=True)
class Work:
    """The items of one optimiser step; those of equal shape are neighbours."""

    policy: tuple[PolicyItem, ...]
    sft: tuple[SftItem, ...]
    difficulty: Tensor  # float64 [rows]
    rows: int


Item = TypeVar("Item", PolicyItem, SftItem)


def assemble(groups: Sequence[Summary], tracks: RewardTracks, fingerprint: str) -> GlobalBatch:
    """Check the groups and compute the advantages of all their rows; the rewards enter the tracks.

    Raises:
        BatchError: no groups, a group twice, another schedule than the learner's, mixed reward versions (to blame are
            those of another version than the tracks', or than most), or rewards that can't be normalised.
    """
    ordered = _ordered(groups)
    others = [g for g in ordered if g.meta.scheduler_fingerprint != fingerprint]
    if others:
        meta = others[0].meta
        raise BatchError(
            f"group {meta.group_id} was rolled out with schedule {meta.scheduler_fingerprint}, the learner replays "
            f"{fingerprint}: give actors and learner the same sampler settings",
            [g.meta.group_id for g in others],
        )
    _refuse_mixed_rewards(ordered, tracks.reward_version)
    version = ordered[0].meta.reward_version
    try:
        rows = [row for group in ordered for row in _reward_rows(group)]
        flat = iter(tracks.advantages(rows, version))
    except AdvantageError as error:
        bad = set(error.trajectory_ids)
        raise BatchError(
            str(error), [g.meta.group_id for g in ordered if not bad.isdisjoint(g.trajectory_ids)]
        ) from error
    advantages = tuple(tuple(next(flat) for _ in group.trajectory_ids) for group in ordered)
    return GlobalBatch(ordered, advantages, version)


def preview(groups: Sequence[Summary], settings: AdvantageSettings) -> GlobalBatch:
    """What `assemble` will return, with advantages of 0: needs neither tracks nor the rewards' values.

    `make_work` makes the same items of it, in the same order, so a rank can fetch its share of a batch
    (`groups_of_rank`) while the tracks still wait for the batch before.

    Raises:
        BatchError: no groups, or a group twice.
    """
    ordered = _ordered(groups)
    advantages = []
    for group in ordered:
        steps = group.step_index.tolist()
        rows = (trained_steps(steps, scored, settings.unscored) for scored in group.scored.tolist())
        advantages.append(tuple(dict.fromkeys(row, 0.0) for row in rows))
    return GlobalBatch(ordered, tuple(advantages), ordered[0].meta.reward_version)


def plan_updates(batch: GlobalBatch, updates: int) -> list[list[int]]:
    """Groups of each of `updates` optimiser steps, as even as they divide, in group order."""
    count = len(batch.groups)
    updates = min(updates, count)
    bounds = [round(i * count / updates) for i in range(updates + 1)]
    return [list(range(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]


def make_work(batch: GlobalBatch, chosen: Sequence[int], objective: ObjectiveSettings) -> Work:
    """Items and weights of one optimiser step over the groups `chosen` (Eq. 9 and 10).

    A trajectory's J and KL are means over its trained steps; every term is divided by the number of trajectories.

    Raises:
        BatchError: errors that are no norms.
    """
    norm = "error_l1" if objective.difficulty_norm == "l1" else "error_l2"
    groups = [batch.groups[g] for g in chosen]
    errors = [getattr(group, norm) for group in groups]
    try:
        difficulty = difficulty_weights(torch.cat(errors))
    except ValueError as error:
        bad = [
            group.meta.group_id
            for group, values in zip(groups, errors, strict=True)
            if not bool((values.isfinite() & (values >= 0)).all())
        ]
        raise BatchError(str(error), bad) from error
    rows = len(difficulty)
    rl, sft = objective.rl_weights(difficulty).tolist(), objective.sft_weights(difficulty).tolist()
    by_shape: dict[Shape, tuple[list[PolicyItem], list[SftItem]]] = {}
    first = 0  # row of the batch that is the group's first
    with _uncollected():
        for g, group in zip(chosen, groups, strict=True):
            shape = shape_of(group)
            policy_items, sft_items = by_shape.setdefault(shape, ([], []))
            advantages = batch.advantages[g]
            if objective.needs_policy:
                shares = [1 / (rows * len(values)) if values else 0.0 for values in advantages]
                weighted = [
                    (values, rl[first + row] * share, objective.kl_beta * share)
                    for row, (values, share) in enumerate(zip(advantages, shares, strict=True))
                ]
                # Step by step, as the rollout evaluated them: all rows of a group at one timestep are neighbours.
                policy_items += [
                    PolicyItem(g, row, position, values[step], surrogate, kl, shape)
                    for position, step in enumerate(group.step_index.tolist())
                    for row, (values, surrogate, kl) in enumerate(weighted)
                    if step in values
                ]
            if objective.needs_sft:
                sft_items += [SftItem(g, i, sft[i] / rows, shape) for i in range(first, first + len(advantages))]
            first += len(advantages)
    return Work(
        tuple(item for items, _ in by_shape.values() for item in items),
        tuple(item for _, items in by_shape.values() for item in items),
        difficulty,
        rows,
    )


def share(items: Sequence[Item], rank: int, world: int, micro: int) -> list[list[Item]]:
    """Micro-batches of one rank: contiguous, of at most `micro` items, of one shape each, and as many on every rank.

    Ranks get equal parts of the latent area to compute on, which are equal numbers of items where all have one shape.
    The collectives of ZeRO-2 and 3 run in every micro-batch, so ranks must do the same number; a rank that has run
    out of items gets empty ones, which the caller fills with `filler` at weight 0.
    """
    parts = [_chunks(part, micro) for part in _parts(items, world)]
    mine = parts[rank]
    return mine + [[] for _ in range(max(map(len, parts)) - len(mine))]


def filler(items: Sequence[Item], rank: int, world: int) -> Item:
    """What stands in a rank's empty micro-batches: an item of its own, or the first of all if it has none."""
    return (_parts(items, world)[rank] or items)[0]


def groups_of_rank(work: Work, rank: int, world: int, micro: int) -> list[int]:
    """Groups whose tensors the rank needs for its `share` of all items, fillers included, in order of first use."""
    return list(dict.fromkeys([*_groups(work.policy, rank, world, micro), *_groups(work.sft, rank, world, micro)]))


def shape_of(group: Summary) -> Shape:
    """What groups must agree in to stand in one micro-batch."""
    return (*group.latent, *group.meta.crop[2:])


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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, Python looks for no cycles. Items make none, and to look at all of them again and again takes longer than
    to make them.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _ordered(groups: Sequence[Summary]) -> tuple[Summary, ...]:
    if not groups:
        raise BatchError("batch: no trajectories")
    ordered = tuple(sorted(groups, key=lambda g: g.meta.group_id))
    ids = [g.meta.group_id for g in ordered]
    twice = sorted({a for a, b in zip(ids, ids[1:], strict=False) if a == b})
    if twice:
        raise BatchError(f"batch: a group twice: {', '.join(twice[:4])}; each is consumed exactly once", twice)
    return ordered


def _refuse_mixed_rewards(groups: Sequence[Summary], of_tracks: str | None) -> None:
    counts: dict[str, int] = {}
    for group in groups:
        counts[group.meta.reward_version] = counts.get(group.meta.reward_version, 0) + 1
    if len(counts) > 1:
        kept = of_tracks if of_tracks in counts else max(counts, key=lambda version: (counts[version], version))
        raise BatchError(
            f"batch: rewards of versions {sorted(counts)} can't be normalised together; drop the groups that are not "
            f"of {kept}",
            [g.meta.group_id for g in groups if g.meta.reward_version != kept],
        )


def _parts(items: Sequence[Item], world: int) -> list[list[Item]]:
    """Every rank's items: contiguous, as even in latent area as whole items allow."""
    runs = [(shape[1] * shape[2], list(run)) for shape, run in groupby(items, key=lambda i: i.shape)]
    total, before = sum(area * len(run) for area, run in runs), 0
    parts: list[list[Item]] = [[] for _ in range(world)]
    for area, run in runs:
        # Item j of the run begins at before + j * area, and belongs to the rank in whose share of the total that is.
        bounds = [-(-(total * rank - before * world) // (area * world)) for rank in range(world + 1)]
        places = [min(max(b, 0), len(run)) for b in bounds]
        for part, a, b in zip(parts, places, places[1:], strict=False):
            part += run[a:b]
        before += area * len(run)
    return parts


def _groups(items: Sequence[Item], rank: int, world: int, micro: int) -> list[int]:
    parts = share(items, rank, world, micro)
    used: list[int] = [item.group for part in parts for item in part]
    return used if all(parts) else [*used, filler(items, rank, world).group]


def _chunks(items: Sequence[Item], micro: int) -> list[list[Item]]:
    chunks: list[list[Item]] = []
    for _, run in groupby(items, key=lambda i: i.shape):
        alike = list(run)
        chunks += [alike[i : i + micro] for i in range(0, len(alike), micro)]
    return chunks


def _reward_rows(group: Summary) -> list[RewardRow]:
    steps = tuple(group.step_index.tolist())
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
