"""Two methods on the same pictures: intervals and tests say what a difference is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import bootstrap

from restoration.metrics.compare import Interval, bootstrap_interval, compare


def test_an_interval_is_that_of_scipy_and_the_same_each_time() -> None:
    values = np.random.default_rng(1).gamma(2, size=40)
    ours = bootstrap_interval(values)
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", random_state=2).confidence_interval
    assert ours == bootstrap_interval(values) and ours.mean == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04)
    narrow, wide = bootstrap_interval(values, 0.5), bootstrap_interval(values, 0.99)
    assert wide.low < ours.low < narrow.low < ours.mean < narrow.high < ours.high < wide.high


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap_interval(rng.normal(1, 2, 30), 0.9, 400, rng) for _ in range(300)]
    assert sum(i.low < 1 < i.high for i in found) / 300 == pytest.approx(0.88, abs=0.05)


def test_many_figures_are_drawn_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=50)
    whole = bootstrap_interval(values)
    monkeypatch.setattr("restoration.metrics.compare._AT_ONCE", 999)
    assert bootstrap_interval(values) == whole


def test_a_known_difference_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(3)
    b = {f"{i}": float(v) for i, v in enumerate(rng.normal(25, 3, 60))}
    a = {i: v + 0.5 + float(rng.normal(0, 0.5)) for i, v in b.items()}
    found = compare(a, b)
    assert found.n == 60 and found.left_out == 0 and found.p < 1e-6 and found.share > 0.7
    assert found.difference.low < 0.5 < found.difference.high and found.difference.low > 0
    backwards = compare(b, a)
    assert backwards.difference.mean == pytest.approx(-found.difference.mean) and backwards.p == found.p
    noise = compare({i: v + float(rng.normal(0, 0.5)) for i, v in b.items()}, b)
    assert noise.p > 0.05 and noise.difference.low < 0 < noise.difference.high
    same = compare(b, b)
    assert (same.difference, same.p, same.share) == (Interval(0, 0, 0), 1.0, 0.5)


def test_pictures_that_only_one_has_a_figure_of_are_left_out_and_counted() -> None:
    a = {"1": 1.0, "2": 3.0, "3": math.nan}
    b = {"1": 0.5, "2": 2.0, "3": 9.0}
    found = compare(a, b)
    assert (found.n, found.left_out, found.difference.mean) == (2, 1, 0.75)


def test_what_can_not_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="only A has x; only B has y"):
        compare({"x": 1.0, "z": 1.0}, {"y": 1.0, "z": 1.0})
    with pytest.raises(ValueError, match="1 pictures have the figure of both methods"):
        compare({"x": 1.0, "z": math.nan}, {"x": 1.0, "z": 1.0})
    with pytest.raises(ValueError, match="at least two pictures"):
        bootstrap_interval([1.0])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_interval([1.0, math.nan])
    with pytest.raises(ValueError, match="confidence=95"):
        bootstrap_interval([1.0, 2.0], 95)
