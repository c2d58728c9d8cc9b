"""Quality by maximum likelihood with bias and inconsistency. Agreement with `sureal`: tests/golden, `opinions`."""

from __future__ import annotations

import numpy as np
import pytest

from reward_service.annotation.opinion import ROUNDING, opinions
from reward_service.annotation.votes import Ratings


def drawn(
    seed: int, pictures: int = 40, deviations: tuple[float, ...] = (0.4, 0.5, 0.6, 0.9, 1.4), missing: float = 0.0
) -> tuple[Ratings, np.ndarray, np.ndarray]:
    """Unrounded ratings, the true qualities and the true biases (of mean 0)."""
    rng = np.random.default_rng(seed)
    quality = rng.uniform(1.5, 4.5, pictures)
    bias = rng.normal(0, 0.4, len(deviations))
    bias -= bias.mean()
    rows = [
        (f"a{i}", f"p{j:03d}", quality[j] + bias[i] + rng.normal(0, sigma))
        for i, sigma in enumerate(deviations)
        for j in range(pictures)
        if rng.random() >= missing
    ]
    return Ratings.of(rows), quality, bias


def likelihood(ratings: Ratings, quality: np.ndarray, bias: np.ndarray, sigma: np.ndarray) -> float:
    rest = ratings.level - quality[ratings.picture] - bias[ratings.annotator]
    s = sigma[ratings.annotator]
    return float((-np.log(s) - 0.5 * (rest / s) ** 2).sum())


def test_no_small_change_of_any_estimate_makes_the_ratings_likelier() -> None:
    ratings, _, _ = drawn(0, deviations=(0.6, 0.7, 0.8, 0.9) * 4, missing=0.1)
    found = opinions(ratings)
    assert found.converged and found.inconsistency.min() > ROUNDING
    best = likelihood(ratings, found.quality, found.bias, found.inconsistency)
    rng = np.random.default_rng(1)
    for scale in (1e-3, 1e-2):
        for _ in range(50):
            changed = [
                values + rng.normal(0, scale, values.shape)
                for values in (found.quality, found.bias, found.inconsistency)
            ]
            assert likelihood(ratings, *changed) < best


def test_bias_and_inconsistency_are_found_and_qualities_are_nearer_the_truth_than_means() -> None:
    nearer = []
    for seed in range(10):
        ratings, quality, bias = drawn(seed, pictures=80, missing=0.4)
        found = opinions(ratings)
        assert np.abs(found.bias - bias).max() < 0.5
        assert found.inconsistency.argmax() == 4
        means = np.bincount(ratings.picture, ratings.level) / found.votes
        truth = quality[[int(name[1:]) for name in ratings.pictures]]
        nearer.append(np.abs(found.quality - truth).mean() / np.abs(means - truth).mean())
    assert np.mean(nearer) < 0.85


def test_the_standard_error_tells_how_far_qualities_lie_from_the_truth() -> None:
    scaled = []
    for seed in range(10):
        ratings, quality, _ = drawn(seed, pictures=80, deviations=(0.6, 0.7, 0.8, 0.9) * 4)
        found = opinions(ratings)
        scaled += ((found.quality - quality) / found.error).tolist()
    assert np.std(scaled) == pytest.approx(1, abs=0.15)


def test_a_missing_vote_is_none_and_a_repeated_one_counts_twice() -> None:
    ratings, _, _ = drawn(3)
    rows = ratings.rows()
    without = opinions(Ratings.of(row for row in rows if row[:2] != ("a0", "p000")))
    assert without.votes[0] == 4 and without.votes[1] == 5
    twice = opinions(Ratings.of([*rows, rows[0]]))
    assert twice.votes[ratings.picture[0]] == 6


def test_the_order_of_votes_and_the_names_do_not_matter() -> None:
    ratings, _, _ = drawn(4, missing=0.2)
    rows = ratings.rows()
    shuffled = opinions(Ratings.of([rows[i] for i in np.random.default_rng(0).permutation(len(rows))]))
    np.testing.assert_allclose(shuffled.quality, opinions(ratings).quality, atol=1e-6)


def test_an_annotator_can_not_become_the_truth() -> None:
    rows = [(who, f"p{j}", float(level)) for who, levels in VOTES.items() for j, level in enumerate(levels)]
    found = opinions(Ratings.of(rows))
    assert (found.inconsistency >= ROUNDING - 1e-12).all()
    assert found.error.min() > 0.1  # of 3 votes: no vote can have all weight


VOTES = {"a": (1, 2, 3, 4, 5), "b": (1, 2, 3, 4, 5), "c": (2, 1, 4, 3, 5)}


def test_the_spread_of_few_votes_is_pulled_to_that_of_all_pictures() -> None:
    rows = [(f"a{i}", f"p{j}", 3 + (j / 10 if (i + j) % 2 else -j / 10)) for i in range(6) for j in range(6)]
    few = Ratings.of(row for row in rows if row[0] in ("a0", "a1"))
    many, two = opinions(Ratings.of(rows)), opinions(few)
    assert np.ptp(two.spread) < np.ptp(many.spread)
    bare = opinions(Ratings.of(rows), prior=1e-9)
    rests = np.array([0.05, 0.05, 0.25, 0.25, 0.45, 0.45])  # half the annotators are biased by 0.05, half by -0.05
    np.testing.assert_allclose(bare.spread, rests * (6 / 5) ** 0.5, atol=1e-6)


def test_annotators_who_share_no_picture_fall_into_groups_with_biases_of_their_own() -> None:
    rows = [(f"a{i}", f"p{j}", 2.0 + j % 3 + 0.5 * (i % 2)) for i in range(4) for j in range(6) if (j < 3) == (i < 2)]
    found = opinions(Ratings.of(rows))
    assert found.groups.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(found.bias, [-0.25, 0.25, -0.25, 0.25], atol=1e-6)


def test_one_annotator_and_equal_ratings_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="ratings of a alone: .* have another one rate, too"):
        opinions(Ratings.of([("a", "p", 3.0), ("a", "q", 4.0)]))
    with pytest.raises(ValueError, match="all 4 ratings are 3: .* compare them in pairs"):
        opinions(Ratings.of([(who, p, 3.0) for who in "ab" for p in "pq"]))
