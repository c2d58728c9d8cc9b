"""Who counts, and who is left out by name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reward_service.annotation.screening import Rules, screen
from reward_service.annotation.votes import Choices, Ratings
from tests.reward_service.annotation.people import GOOD, GUESSER, Person

NOBODY = Choices.of([])
UNRATED = Ratings.of([])


def ratings_of(people: tuple[Person, ...], pictures: int = 30, seed: int = 0) -> Ratings:
    rng = np.random.default_rng(seed)
    quality = rng.uniform(1.2, 4.8, pictures)
    return Ratings.of(
        (person.name, f"p{j:02d}", float(person.level(quality[j], rng))) for person in people for j in range(pictures)
    )


def choices_of(people: tuple[Person, ...], pairs: int = 40, seed: int = 0) -> Choices:
    rng = np.random.default_rng(seed)
    gaps = rng.normal(0, 1, pairs)
    won = {"left": 1.0, "right": 0.0, "tie": 0.5}
    return Choices.of(
        (person.name, f"a{j:02d}", f"b{j:02d}", won[person.side(gaps[j], 0.0, rng)])
        for person in people
        for j in range(pairs)
    )


def test_an_annotator_at_random_is_left_out_with_the_figure_and_the_others_stay() -> None:
    for seed in range(5):
        found = screen(ratings_of((*GOOD, GUESSER), seed=seed), NOBODY, {}, Rules())
        assert {who for who, of in found.items() if of.left_out} == {"guess"}
        assert "no more than by chance" in found["guess"].left_out
        assert found["guess"].agreement < 0.3 < min(found[p.name].agreement for p in GOOD)


def test_one_at_random_among_comparisons_is_left_out_too() -> None:
    for seed in range(5):
        found = screen(UNRATED, choices_of((*GOOD, GUESSER), seed=seed), {}, Rules())
        assert {who for who, of in found.items() if of.left_out} == {"guess"}
        assert found["anna"].agreement_in_pairs > 0.3 and math.isnan(found["anna"].agreement)


def test_several_at_random_are_left_out_one_after_the_other() -> None:
    people = (*GOOD, GUESSER, Person("other", guesses=True))
    found = screen(ratings_of(people), NOBODY, {}, Rules())
    assert {who for who, of in found.items() if of.left_out} == {"guess", "other"}


def test_who_fails_traps_is_left_out_and_equal_is_half_a_failure() -> None:
    traps = {"anna": [0.0, 0.0, 0.0], "ben": [0.5, 0.5, 0.0], "cy": [1.0, 0.0], "dora": [1.0]}
    found = screen(ratings_of(GOOD), NOBODY, traps, Rules())
    assert [who for who, of in found.items() if of.left_out] == ["cy"]
    assert found["cy"].left_out == "fails 50% of 2 traps, more than 34% (ground truth against degraded input)"
    assert found["ben"].traps == 3 and found["ben"].traps_failed == pytest.approx(1 / 3)
    strict = screen(ratings_of(GOOD), NOBODY, traps, Rules(most_traps_failed=0.2, least_traps=1))
    assert [who for who, of in strict.items() if of.left_out] == ["ben", "cy", "dora"]


def test_one_answer_to_everything_is_left_out_and_named() -> None:
    same = Ratings.of([*ratings_of(GOOD).rows(), *(("same", f"p{j:02d}", 4.0) for j in range(30))])
    found = screen(same, NOBODY, {}, Rules())
    assert found["same"].left_out == "gives the answer 4 to everything"
    ties = Choices.of([*choices_of(GOOD).rows(), *(("same", f"a{j:02d}", f"b{j:02d}", 0.5) for j in range(30))])
    assert screen(UNRATED, ties, {}, Rules())["same"].left_out == "gives the answer tie to everything"


def test_who_has_too_few_votes_to_be_judged_counts() -> None:
    rows = [*ratings_of(GOOD).rows(), *(("new", f"p{j:02d}", float(5 - j % 5)) for j in range(7))]
    found = screen(Ratings.of(rows), NOBODY, {}, Rules())
    assert not found["new"].left_out and math.isnan(found["new"].agreement)


def test_two_who_disagree_are_refused_since_nobody_can_tell_who_is_right() -> None:
    with pytest.raises(ValueError, match=r"anna and guess don't agree \(.*have a third one rate the same pictures"):
        screen(ratings_of((GOOD[0], GUESSER)), NOBODY, {}, Rules())


def test_nobody_left_is_refused_with_every_reason() -> None:
    with pytest.raises(ValueError, match=r"no annotator is left:\n  anna fails 100% .*\n  ben fails 100%"):
        screen(ratings_of(GOOD[:2]), NOBODY, {"anna": [1.0, 1.0], "ben": [1.0, 1.0]}, Rules())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"least_votes": 2}, "least_votes=2: at least 3"),
        ({"least_traps": 0}, "least_traps=0: at least 1"),
        ({"least_agreement": 1.5}, "least_agreement=1.5: must be a number from -1 to 1"),
        ({"most_traps_failed": float("nan")}, "most_traps_failed=nan"),
    ],
)
def test_rules_that_are_none_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rules(**settings)  # type: ignore[arg-type]
