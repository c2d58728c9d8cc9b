"""The scores of a rollout: each term asked of its service, or compared with the ground truth here."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from actors.rollout import Rollout
from actors.terms import RewardTerms
from restoration.images import to_uint8
from restoration.metrics.full_reference import FullReference
from reward_service.client import RewardClient, RewardResult, RewardTicket
from reward_service.errors import InvalidBlock, InvalidReward, RewardError

Scores = dict[str, dict[int, np.ndarray]]  # term -> decision -> float32 [R]


def score_rollout(
    rolled: Rollout,
    terms: RewardTerms,
    clients: Mapping[str, RewardClient],
    references: Mapping[str, FullReference],
    with_gt: bool,
) -> tuple[Scores, np.ndarray | None, str]:
    """Scores of each trained term and decision, the first term's of the ground truth, and the version of all.

    Args:
        clients, references: of each trained term that is served, and of each that isn't, by name.
        with_gt: whether the ground truth is scored, too; float32 [N].

    Raises:
        RewardError: of any term; where there are several, the message names it.
    """
    gt, first, several = to_uint8(rolled.batch.gt), terms.names[0], len(terms.trained) > 1
    served = [term.name for term in terms.trained if term.served]
    tickets = {(name, i): clients[name].submit(block) for name in served for i, block in rolled.blocks.items()}
    gt_ticket = clients[first].submit(gt) if with_gt and first in served else None
    try:
        scores, versions = _compared(rolled, gt, references), {n: {m.version} for n, m in references.items()}
        gt_scores = references[first].score(gt, gt) if with_gt and first in references else None
        for (name, i), ticket in tickets.items():
            result = _result(ticket, name, several)
            scores.setdefault(name, {})[i] = result.scores
            versions.setdefault(name, set()).add(result.reward_version)
        if gt_ticket is not None:
            result = _result(gt_ticket, first, several)
            gt_scores = result.scores
            versions[first].add(result.reward_version)
    except BaseException:
        for ticket in (*tickets.values(), *((gt_ticket,) if gt_ticket is not None else ())):
            ticket.cancel()
        raise
    for name, found in versions.items():
        if len(found) > 1:
            raise RewardError(f"one rollout was scored by several versions of {name}: {sorted(found)}")
    return scores, gt_scores, terms.version({name: found.pop() for name, found in versions.items()})


def _compared(rolled: Rollout, gt: np.ndarray, references: Mapping[str, FullReference]) -> Scores:
    """Of the terms that need no service, computed while the services work."""
    truths, scores = gt.repeat(rolled.settings.rollouts_per_image, axis=0), Scores()
    for name, metric in references.items():
        if min(gt.shape[1:3]) < metric.least_side:
            raise InvalidBlock(
                f"reward term {name!r}: pictures of {gt.shape[2]}x{gt.shape[1]} are too small: sides of "
                f"{metric.least_side} at least"
            )
        scores[name] = {i: _finite(metric.score(block, truths), name) for i, block in rolled.blocks.items()}
    return scores


def _result(ticket: RewardTicket, term: str, several: bool) -> RewardResult:
    try:
        return ticket.result()
    except RewardError as error:
        if several:
            raise type(error)(f"reward term {term!r}: {error.message}", error.indexes) from error
        raise


def _finite(scores: np.ndarray, term: str) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        message = f"reward term {term!r} gave {scores[bad[0]]} for {len(bad)} of {len(scores)} images"
        raise InvalidReward(message, bad.tolist())
    return scores
