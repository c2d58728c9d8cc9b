"""Two methods on the same pictures: is the difference more than chance? Pure functions of their figures.

Pictures are what is drawn: an interval says how the mean would vary over other pictures of the same kind, not over
seeds of a training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 4000
_AT_ONCE = 2**22  # figures that a bootstrap holds together


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Paired:
    """Method A minus method B, picture by picture.

    Attributes:
        difference: of the means.
        p: of Wilcoxon's signed-rank test, two-sided, that neither is better; 1 where no picture differs.
        n: pictures that both have a figure of.
        left_out: pictures that only one has.
        share: of the n in which A's figure is higher; ties count half.
    """

    difference: Interval
    p: float
    n: int
    left_out: int
    share: float


def bootstrap_interval(
    values: ArrayLike,
    confidence: float = 0.95,
    draws: int = DRAWS,
    rng: np.random.Generator | None = None,
) -> Interval:
    """The mean of one figure a picture, with the percentiles of the means of `draws` resamplings.

    Args:
        values: [N], finite.
        rng: where it is drawn from; None draws the same each time.

    Raises:
        ValueError: fewer than two values, one that is not finite, confidence outside (0, 1).
    """
    held = np.asarray(values, dtype=np.float64)
    if held.ndim != 1 or len(held) < 2:
        raise ValueError(f"an interval takes at least two pictures, got figures of shape {held.shape}")
    if not np.isfinite(held).all():
        raise ValueError("figures that are not finite have no mean; leave those pictures out and say so")
    if not 0 < confidence < 1 or draws < 1:
        raise ValueError(f"confidence={confidence}, draws={draws}: between 0 and 1, and at least 1")
    rng, block = rng or np.random.default_rng(0), max(1, _AT_ONCE // len(held))
    means: list[NDArray[np.float64]] = []
    for start in range(0, draws, block):
        size = (min(block, draws - start), len(held))
        means.append(held[rng.integers(0, len(held), size)].mean(1))
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return Interval(float(held.mean()), float(low), float(high))


def compare(a: Mapping[str, float], b: Mapping[str, float], confidence: float = 0.95) -> Paired:
    """A minus B of one figure; image id -> its value, NaN where a picture has none.

    Raises:
        ValueError: other pictures on the two sides; fewer than two that both have.
    """
    if a.keys() != b.keys():
        one, other = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
        named = [f"only {side} has {', '.join(ids[:3])}" for side, ids in (("A", one), ("B", other)) if ids]
        raise ValueError(f"methods of other pictures can't be paired: {'; '.join(named)}; evaluate both on one set")
    both = [i for i in a if not math.isnan(a[i]) and not math.isnan(b[i])]
    if len(both) < 2:
        raise ValueError(f"{len(both)} pictures have the figure of both methods: a paired test takes at least two")
    return paired([a[i] for i in both], [b[i] for i in both], len(a) - len(both), confidence)


def paired(a: Sequence[float], b: Sequence[float], left_out: int = 0, confidence: float = 0.95) -> Paired:
    """As `compare`, of figures in the same order."""
    from scipy.stats import wilcoxon  # which takes seconds to import

    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    share = float(((difference > 0) + 0.5 * (difference == 0)).mean())
    return Paired(bootstrap_interval(difference, confidence), p, len(difference), left_out, share)
