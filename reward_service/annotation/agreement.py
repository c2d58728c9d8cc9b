"""How far annotators agree with each other and with themselves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from reward_service.annotation.votes import Ratings, Values

Metric = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(units: Sequence[Hashable], values: Sequence[float], metric: Metric = "interval") -> float:
    """Krippendorff's alpha of N values about units, of any number each: 1 full agreement, 0 that of chance.

    NaN where nothing can differ: no unit with two values, or all values equal.

    Raises:
        ValueError: another metric.
    """
    if metric not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"metric={metric!r}: choose nominal, ordinal or interval")
    levels, level = np.unique(np.asarray(values, np.float64), return_inverse=True)
    places: dict[Hashable, int] = {}
    unit = np.array([places.setdefault(u, len(places)) for u in units], np.int64)
    counts = np.zeros((len(places), len(levels)))
    np.add.at(counts, (unit, level), 1)
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return math.nan
    weight = 1 / (counts.sum(1) - 1)
    together = np.einsum("u,uc,uk->ck", weight, counts, counts) - np.diag(weight @ counts)
    total = together.sum(1)
    distance = _distance(levels, total, metric)
    expected = total @ distance @ total
    if expected == 0:
        return math.nan
    return float(1 - (total.sum() - 1) * (together * distance).sum() / expected)


def _distance(levels: Values, total: Values, metric: Metric) -> Values:
    """Squared differences of levels, [L, L]."""
    if metric == "nominal":
        return 1.0 - np.eye(len(levels))
    if metric == "interval":
        return np.asarray((levels[:, None] - levels[None]) ** 2)
    below = np.cumsum(total) - total / 2  # of those between two levels, and half of either
    return np.asarray((below[:, None] - below[None]) ** 2)


def reliability(ratings: Ratings) -> tuple[float, float]:
    """Intraclass correlation (one-way random) of a single rating and of a picture's mean rating.

    NaN where no picture has two ratings, there is but one picture, or nothing differs.
    """
    votes = np.bincount(ratings.picture, minlength=len(ratings.pictures)).astype(np.float64)
    count, pictures = len(ratings), len(ratings.pictures)
    if pictures < 2 or count <= pictures:
        return math.nan, math.nan
    means = np.bincount(ratings.picture, ratings.level, pictures) / votes
    between = float((votes * (means - ratings.level.mean()) ** 2).sum() / (pictures - 1))
    within = float(((ratings.level - means[ratings.picture]) ** 2).sum() / (count - pictures))
    typical = (count - float((votes**2).sum()) / count) / (pictures - 1)
    if between == within == 0:
        return math.nan, math.nan
    single = (between - within) / (between + (typical - 1) * within)
    return single, (between - within) / between if between else math.nan


def repeat_difference(values: dict[Hashable, list[float]]) -> float:
    """Mean absolute difference of the answers that were given to the same question; NaN where none came twice."""
    gaps = [abs(a - b) for given in values.values() for i, a in enumerate(given) for b in given[i + 1 :]]
    return float(np.mean(gaps)) if gaps else math.nan


def repeats_of(ratings: Ratings) -> dict[str, float]:
    """`repeat_difference` of each annotator's ratings, in levels."""
    given: dict[str, dict[Hashable, list[float]]] = {name: defaultdict(list) for name in ratings.annotators}
    for who, picture, level in ratings.rows():
        given[who][picture].append(level)
    return {who: repeat_difference(values) for who, values in given.items()}
