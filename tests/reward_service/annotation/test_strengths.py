"""Bradley-Terry and Thurstone from comparisons."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import expit, ndtr, ndtri

from reward_service.annotation.strengths import MODELS, Model, strengths
from reward_service.annotation.votes import Choices


def comparisons(seed: int, model: Model, pictures: int = 6, votes: int = 4000) -> tuple[Choices, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1, pictures)
    truth -= truth.mean()
    rows = []
    for _ in range(votes):
        a, b = rng.choice(pictures, 2, replace=False)
        gap = truth[a] - truth[b]
        p = expit(gap) if model == "bradley-terry" else ndtr(gap / 2**0.5)
        rows.append(("x", f"p{a}", f"p{b}", float(rng.random() < p)))
    return Choices.of(rows), truth


@pytest.mark.parametrize("model", MODELS)
def test_the_strengths_behind_the_comparisons_are_found_within_their_errors(model: Model) -> None:
    choices, truth = comparisons(0, model)
    found = strengths(choices, model)
    assert (np.abs(found.value - truth) < 4 * found.error).all() and found.error.max() < 0.15
    assert found.value.mean() == pytest.approx(0, abs=1e-9)


def test_two_pictures_have_the_log_odds_and_the_probit_of_their_share() -> None:
    choices = Choices.of([("x", "a", "b", 1.0)] * 30 + [("x", "b", "a", 1.0)] * 10)
    odds = strengths(choices, prior=1e-9)
    assert odds.value[0] - odds.value[1] == pytest.approx(math.log(3), abs=1e-6)
    probit = strengths(choices, "thurstone", prior=1e-9)
    assert probit.value[0] - probit.value[1] == pytest.approx(2**0.5 * ndtri(0.75), abs=1e-6)
    for found, model in ((odds, "bradley-terry"), (probit, "thurstone")):
        assert found.preference(np.array([0]), np.array([1]), model) == pytest.approx(0.75)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", MODELS)
def test_won_and_expected_wins_are_equal_or_the_slope_is_zero(model: Model) -> None:
    choices, _ = comparisons(1, model, votes=200)
    found = strengths(choices, model, prior=0.2)

    def objective(value: np.ndarray) -> float:
        gap = value[choices.first] - value[choices.second]
        p = expit(gap) if model == "bradley-terry" else ndtr(gap / 2**0.5)
        return float((choices.won * np.log(p) + (1 - choices.won) * np.log1p(-p)).sum() - 0.1 * (value**2).sum())

    best = objective(found.value)
    for j in range(len(found.value)):
        for step in (-1e-3, 1e-3):
            assert objective(found.value + step * np.eye(len(found.value))[j]) < best


@pytest.mark.parametrize("model", MODELS)
def test_a_picture_that_always_wins_stays_finite_and_a_tie_is_half_a_win(model: Model) -> None:
    always = strengths(Choices.of([("x", "a", "b", 1.0)] * 50), model)
    assert np.isfinite(always.value).all() and always.value[0] > 1 > -1 > always.value[1]
    tie = strengths(Choices.of([("x", "a", "b", 0.5)] * 4), model)
    assert tie.value == pytest.approx([0, 0])


def test_pictures_that_nothing_connects_are_groups_with_a_mean_of_their_own() -> None:
    rows = [("x", "a", "b", 1.0), ("x", "b", "c", 1.0), ("x", "d", "e", 1.0)]
    found = strengths(Choices.of(rows))
    assert found.groups.tolist() == [0, 0, 0, 1, 1]
    assert found.value[:3].mean() == pytest.approx(0, abs=1e-9) and found.value[3:].mean() == pytest.approx(0, abs=1e-9)


def test_which_side_a_picture_was_shown_on_does_not_matter() -> None:
    there = Choices.of([("x", "a", "b", 1.0), ("y", "a", "b", 0.5)])
    back = Choices.of([("x", "b", "a", 0.0), ("y", "b", "a", 0.5)])
    assert there.rows() == back.rows()


def test_what_is_no_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="no comparison"):
        strengths(Choices.of([]))
    with pytest.raises(ValueError, match="a is compared with itself"):
        Choices.of([("x", "a", "a", 1.0)])
    choices = Choices.of([("x", "a", "b", 1.0)])
    with pytest.raises(ValueError, match="model='elo': choose bradley-terry or thurstone"):
        strengths(choices, "elo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prior=0"):
        strengths(choices, prior=0)
