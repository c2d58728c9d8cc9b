"""How a reward orders pictures of known order: shares of pairs, and correlation with PSNR within groups of rollouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.stats import pearsonr, spearmanr

from cluster.report.data import bootstrap_interval


@dataclass(frozen=True)
class Mean:
    """A mean over pictures or groups, with its 95% interval of a bootstrap over them; NaN where `count` is 0."""

    value: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Mean:
        """Of those that are no NaN."""
        kept = np.array([v for v in values if not math.isnan(v)])
        if not len(kept):
            return Mean(math.nan, math.nan, math.nan, 0)
        low, high = bootstrap_interval(kept, draws=2000)
        return Mean(float(kept.mean()), low, high, len(kept))


@dataclass(frozen=True)
class Trick:
    """A trick at one strength.

    Attributes:
        beaten: share of pictures that score higher without it, of those whose PSNR it lowers.
        gain: what it adds to the score.
    """

    beaten: Mean
    gain: Mean


@dataclass(frozen=True)
class Within:
    """Of the clean estimates of one decision, within groups of rollouts of one picture.

    Attributes:
        spearman, pearson: of score and PSNR, means over groups.
        flat: groups whose rollouts all have one score.
        score_spread, psnr_spread: standard deviations within groups, means.
        groups: score and PSNR of each rollout, by groups.
    """

    spearman: Mean
    pearson: Mean
    flat: int
    score_spread: float
    psnr_spread: float
    groups: list[list[tuple[float, float]]]


@dataclass(frozen=True)
class Measures:
    """What was found of one reward.

    Attributes:
        scores: of ground truth, degraded input and base output, means over pictures.
        pairs: "a over b" -> share of pictures with a higher score of a.
        ladders: kind -> share of pairs of its steps, the ground truth among them, in the right order.
        steps: kind -> mean score of each step, the ground truth first.
        tricks: on "ground truth" or "base output" -> trick -> its strengths.
        within: decision -> correlations.
        missing: scores that were not given, of `asked`.
    """

    scores: dict[str, Mean]
    pairs: dict[str, Mean]
    ladders: dict[str, Mean]
    steps: dict[str, list[float]]
    tricks: dict[str, dict[str, list[Trick]]]
    within: dict[int, Within]
    missing: int
    asked: int


def beats(better: float, worse: float) -> float:
    """1 or 0; NaN where either has no score. Equal scores are no victory."""
    return math.nan if math.isnan(better) or math.isnan(worse) else float(better > worse)


def order(steps: np.ndarray) -> float:
    """Share of all pairs of steps [S], the best first, of which the better has the higher score."""
    found = [beats(better, worse) for better, worse in combinations(steps.tolist(), 2)]
    kept = [f for f in found if not math.isnan(f)]
    return sum(kept) / len(kept) if kept else math.nan


def trick_at(plain: np.ndarray, tricked: np.ndarray, lowers: np.ndarray) -> Trick:
    """Scores [P] of pictures without and with it, and whether it lowers their PSNR."""
    pairs = [(a, b) for a, b, counts in zip(plain.tolist(), tricked.tolist(), lowers.tolist(), strict=True) if counts]
    return Trick(Mean.of([beats(a, b) for a, b in pairs]), Mean.of([b - a for a, b in pairs]))


def within(scores: Sequence[np.ndarray], psnr: Sequence[np.ndarray]) -> Within:
    """Of groups [K] each; rollouts without a score are left out."""
    ranks, straight, spreads = list[float](), list[float](), list[tuple[float, float]]()
    flat = 0
    for group, decibel in zip(scores, psnr, strict=True):
        kept = np.isfinite(group)
        x, y = group[kept], decibel[kept]
        if len(x) < 3:
            continue
        spreads.append((float(x.std()), float(y.std())))
        if np.ptp(x) == 0 or np.ptp(y) == 0:
            flat += 1
            continue
        ranks.append(float(spearmanr(x, y).statistic))
        straight.append(float(pearsonr(x, y).statistic))
    score_spread, psnr_spread = np.mean(spreads, 0).tolist() if spreads else (math.nan, math.nan)
    points = [list(zip(x.tolist(), y.tolist(), strict=True)) for x, y in zip(scores, psnr, strict=True)]
    return Within(Mean.of(ranks), Mean.of(straight), flat, score_spread, psnr_spread, points)


def mean_steps(ladders: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Kind -> scores [P, S] to means of the steps, over the pictures that have all of them."""
    return {kind: np.nanmean(table, 0).tolist() if len(table) else [] for kind, table in ladders.items()}
