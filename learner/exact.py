"""Sums of floats without any rounding: every float is a binary fraction, so at a common scale it is an integer.

That is what makes statistics of a large common part plus a small own part cheap and yet as good as those of the union:
Σ(v - m)² = Σv² - 2mΣv + nm² loses everything to cancellation in floats, and nothing in integers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable


class Moments:
    """Count, sum and sum of squares of finite floats, exact; the order of the values makes no difference."""

    def __init__(self, values: Iterable[float]) -> None:
        ratios = [v.as_integer_ratio() for v in values]
        self.count = len(ratios)
        self._bits = max((d.bit_length() for _, d in ratios), default=1) - 1  # the common scale is 2^-bits
        scaled = [n << (self._bits - d.bit_length() + 1) for n, d in ratios]
        self._sum, self._squares = sum(scaled), sum(n * n for n in scaled)
        self._parts = self._expansion()

    def mean_variance_with(self, more: Collection[float]) -> tuple[float, float]:
        """Mean and population variance of these values together with `more`; costs O(len(more)).

        The mean is what `math.fsum` of all values gives, bit for bit; the variance has a few roundings of 2⁻⁵³.
        """
        count = self.count + len(more)
        mean = math.fsum([*more, *self._parts]) / count
        return mean, math.fsum([*((v - mean) ** 2 for v in more), self.squares_around(mean)]) / count

    def squares_around(self, origin: float) -> float:
        """Σ(v - origin)², rounded once."""
        numerator, denominator = origin.as_integer_ratio()
        shift = denominator.bit_length() - 1 - self._bits  # to the finer of the two scales
        own, others = max(0, shift), max(0, -shift)
        point, total = numerator << others, self._sum << own
        squares = (self._squares << 2 * own) - 2 * point * total + self.count * point * point
        return squares / (1 << 2 * (self._bits + own))

    def _expansion(self) -> list[float]:
        """Floats whose sum is exactly Σv."""
        parts, rest, one = [], self._sum, 1 << self._bits
        while rest:
            part = rest / one
            numerator, denominator = part.as_integer_ratio()
            rest -= numerator * (one // denominator)
            parts.append(part)
        return parts


def mean_variance(values: Collection[float]) -> tuple[float, float]:
    """Mean and population variance, independent of the order of `values`."""
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values) / len(values)
