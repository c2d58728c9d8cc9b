"""Agreement among annotators, and of each with himself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reward_service.annotation.agreement import krippendorff_alpha, reliability, repeats_of
from reward_service.annotation.votes import Ratings

# Krippendorff's own example: four observers, twelve units, missing values.
OBSERVED = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)


@pytest.mark.parametrize(("metric", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_published_one(metric: str, published: float) -> None:
    pairs = [(unit, value) for row in OBSERVED for unit, value in enumerate(row) if value is not None]
    found = krippendorff_alpha([unit for unit, _ in pairs], [value for _, value in pairs], metric)  # type: ignore[arg-type]
    assert found == pytest.approx(published, abs=5e-4)


def test_alpha_of_full_agreement_is_1_of_chance_0_and_of_nothing_unknown() -> None:
    units = list(range(50)) * 2
    assert krippendorff_alpha(units, [i % 5 for i in range(50)] * 2) == pytest.approx(1)
    rng = np.random.default_rng(0)
    chance = krippendorff_alpha(list(range(2000)) * 2, rng.integers(1, 6, 4000).tolist(), "ordinal")
    assert abs(chance) < 0.05
    assert math.isnan(krippendorff_alpha([1, 2, 3], [1.0, 2.0, 3.0])) and math.isnan(krippendorff_alpha([1, 1], [3, 3]))
    assert math.isnan(krippendorff_alpha([], []))
    with pytest.raises(ValueError, match="metric='ratio'"):
        krippendorff_alpha([1, 1], [1, 2], "ratio")  # type: ignore[arg-type]


def test_reliability_is_the_share_of_variance_that_pictures_have() -> None:
    rng = np.random.default_rng(0)
    quality = rng.normal(0, 1, 3000)
    rows = [(f"a{i}", f"p{j}", quality[j] + rng.normal(0, 2)) for i in range(4) for j in range(3000)]
    single, mean = reliability(Ratings.of(rows))
    assert single == pytest.approx(1 / 5, abs=0.02) and mean == pytest.approx(4 * single / (1 + 3 * single), abs=1e-9)
    fewer = Ratings.of(row for row in rows if rng.random() < 0.7)
    assert reliability(fewer)[0] == pytest.approx(1 / 5, abs=0.02)


def test_reliability_without_a_second_rating_or_any_difference_is_unknown() -> None:
    for rows in ([("a", "p", 1.0), ("a", "q", 2.0)], [("a", "p", 1.0), ("b", "p", 2.0)], []):
        assert all(map(math.isnan, reliability(Ratings.of(rows))))
    assert all(map(math.isnan, reliability(Ratings.of([(who, p, 3.0) for who in "ab" for p in "pq"]))))


def test_repeats_are_the_mean_difference_of_a_persons_own_answers() -> None:
    rows = [("a", "p", 3.0), ("a", "p", 5.0), ("a", "q", 2.0), ("a", "q", 2.0), ("b", "p", 1.0), ("b", "q", 4.0)]
    found = repeats_of(Ratings.of(rows))
    assert found["a"] == 1.0 and math.isnan(found["b"])
