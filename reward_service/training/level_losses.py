"""DeQA-Score's training losses, on the logits of a model that answers with a level word (arXiv 2501.11561).

For each picture: cross-entropy on the answer's other words, and the Kullback-Leibler divergence of the word's
distribution over the whole vocabulary from soft labels of the five levels. For each pair of pictures of one data set:
the fidelity of the predicted preference to people's (Thurstone), which is what makes scores comparable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from reward_service.scorers.mplug_owl2.prompt import LEVEL_IDS

IGNORED = -100
"""The label of a position that is no part of the answer."""
SCORES = (5.0, 4.0, 3.0, 2.0, 1.0)  # excellent, good, fair, poor, bad
LEVEL_PREFIX = (450, 11029, 310, 278, 1967, 338)
"""The quality of the image is: what stands before the level in the answer."""
_EPS = 1e-8  # a square root of 0 has no gradient


@dataclass(frozen=True)
class LevelLoss:
    """How the losses are weighed; the defaults are the published training's.

    Args:
        soft_kl: of the divergence at the level, within the loss of a picture; 0 trains on the level's own word instead.
        next_token: of that loss, both pictures together.
        rank: of the fidelity.
        in_level: of the probability outside the five levels; 0 leaves it out.
        closed: a score is of the softmax over the five levels; else over all words.
        unit_deviation: predicted preferences have the deviation 1; else the predicted levels' own, through which no
            gradient flows.
    """

    soft_kl: float = 1.0
    next_token: float = 0.05
    rank: float = 1.0
    in_level: float = 0.0
    closed: bool = True
    unit_deviation: bool = True

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f.default, float) and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{f.name}={value}: must be a finite number of at least 0")


class Reading(NamedTuple):
    """What a model says about B pictures: score, deviation [B]; loss, outside, scalars."""

    score: Tensor
    deviation: Tensor
    loss: Tensor
    outside: Tensor


def level_at(labels: Tensor, prefix: Sequence[int] = LEVEL_PREFIX, level_ids: Sequence[int] = LEVEL_IDS) -> Tensor:
    """Where each row's level word stands: int64 [B] of labels [B, T].

    Raises:
        ValueError: a row without the prefix, or with another word behind it; it names the row.
    """
    wanted = torch.tensor(list(prefix), device=labels.device)
    found = (labels.unfold(1, len(wanted), 1) == wanted).all(-1)
    at = found.int().argmax(1) + len(wanted)
    inside = at < labels.shape[1]
    words = labels.gather(1, at.clamp(max=labels.shape[1] - 1)[:, None])[:, 0]
    good = found.any(1) & inside & torch.isin(words, torch.tensor(list(level_ids), device=labels.device))
    if not bool(good.all()):
        row = int((~good).int().argmax())
        raise ValueError(f"labels[{row}]: no level word behind {list(prefix)}; the answer must hold one of five levels")
    return at


def read(
    logits: Tensor,
    labels: Tensor,
    level_probs: Tensor,
    weights: LevelLoss = LevelLoss(),  # noqa: B008  frozen
    prefix: Sequence[int] = LEVEL_PREFIX,
    level_ids: Sequence[int] = LEVEL_IDS,
) -> Reading:
    """The scores of a batch and its loss.

    Args:
        logits: [B, N, words], where the picture's tokens stand before the answer in place of one token.
        labels: int64 [B, T], T <= N; `IGNORED` but for the answer.
        level_probs: soft labels [B, 5], excellent to bad.

    Raises:
        ValueError: as `level_at`; or labels that are longer than the logits.
    """
    more = logits.shape[1] - labels.shape[1]
    if more < 0:
        raise ValueError(f"{labels.shape[1]} labels, but {logits.shape[1]} positions: one for each at most")
    rows, at = torch.arange(len(labels), device=labels.device), level_at(labels, prefix, level_ids)
    levels = torch.tensor(list(level_ids), device=logits.device)
    said = logits[rows, at + more - 1]
    log_words = said.float().log_softmax(-1)
    log_levels = log_words[:, levels]

    others = labels.clone()
    if weights.soft_kl:
        others[rows, at] = IGNORED
    # A position predicts the next; the picture's tokens stand before the answer, so that both are aligned at the end.
    predicting, following = logits[:, more : more + labels.shape[1] - 1], others[:, 1:]
    loss = functional.cross_entropy(predicting.flatten(0, 1).float(), following.flatten(), ignore_index=IGNORED)
    if weights.soft_kl:
        target = level_probs.to(log_levels)
        loss = loss + weights.soft_kl * functional.kl_div(log_levels, target, reduction="batchmean")

    probs = log_levels.softmax(-1) if weights.closed else log_levels.exp()
    values = probs.new_tensor(SCORES)
    score = probs @ values
    deviation = (probs * (values - score[:, None]).square()).sum(1).sqrt()
    outside = (1 - log_levels.exp().sum(1)).mean().clamp_min(0.01)
    return Reading(score, deviation, loss, outside)


def preference(a: Tensor, b: Tensor, variance: Tensor | float) -> Tensor:
    """The probability that a is better than b, of normal opinions whose difference has the variance."""
    return torch.special.ndtr((a - b) / torch.as_tensor(variance, device=a.device, dtype=a.dtype).sqrt())


def fidelity(predicted: Tensor, true: Tensor) -> Tensor:
    """Mean fidelity loss of two probabilities [B]: 0 where they are equal."""
    both = (predicted * true + _EPS).sqrt() + ((1 - predicted) * (1 - true) + _EPS).sqrt()
    return (1 - both).mean()


def pair_loss(
    a: Reading,
    b: Reading,
    opinions: tuple[Tensor, Tensor],
    deviations: tuple[Tensor, Tensor],
    weights: LevelLoss = LevelLoss(),  # noqa: B008  frozen
) -> tuple[Tensor, Tensor]:
    """(total, fidelity loss) of pairs of pictures that the same people judged.

    Args:
        opinions: mean opinion of a and of b, [B] each; deviations: of them.
    """
    spread = 2.0 if weights.unit_deviation else (a.deviation.square() + b.deviation.square() + _EPS).detach()
    true = preference(*opinions, deviations[0].square() + deviations[1].square() + _EPS)
    rank = fidelity(preference(a.score, b.score, spread), true.to(a.score).detach())
    total = weights.rank * rank + weights.next_token * (a.loss + b.loss)
    if weights.in_level:
        total = total + weights.in_level * (a.outside + b.outside)
    return total, rank
