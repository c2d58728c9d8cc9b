"""Rewards of known character get the verdict that they deserve."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from cluster.trust.measures import Mean, beats, order, trick_at, within
from cluster.trust.trial import BASE, GROUND_TRUTH, measure
from cluster.trust.verdict import Verdict, judge
from cluster.trust.versions import LADDERS, TASK, TRICKS, Specimen, ladder, tricked
from restoration.metrics import protocol
from tests.cluster.trust import judges

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def tried() -> list[Specimen]:
    return judges.specimens()


def verdict_on(tried: list[Specimen], score: Score) -> Verdict:
    return judge("it", measure(tried, score, "lowlight_rgb", lambda *_: None))


def texts(verdict: Verdict, standing: str) -> str:
    return "; ".join(f.text for f in verdict.findings if f.standing == standing)


def test_nearness_to_the_ground_truth_can_be_trusted(tried: list[Specimen]) -> None:
    verdict = verdict_on(tried, judges.nearness)
    assert verdict.word == "trust" and verdict.sentence == "it can be trusted for this task"
    assert not texts(verdict, "doubt") and len(verdict.findings) == 3 + len(LADDERS) + 1 + 2 * len(TRICKS) + 1


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (judges.distance, "better rollouts score lower"),
        (judges.colourfulness, "saturate of the base output pays in 100% of"),
        (judges.roughness, "noise: 0% of pairs of strengths are in the right order"),
        (judges.indifference, "the ground truth scores above the degraded input in 0% of pictures"),
    ],
)
def test_a_bad_judge_cannot_be_trusted_and_the_reason_is_told(tried: list[Specimen], score: Score, told: str) -> None:
    verdict = verdict_on(tried, score)
    assert verdict.word == "no" and told in texts(verdict, "bad")
    assert verdict.sentence.startswith("it cannot be trusted for this task: ") and told in verdict.sentence


def test_a_reward_that_rollouts_are_all_one_to_is_doubted(tried: list[Specimen]) -> None:
    def coarse(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
        if any(images.shape == r.shape and np.array_equal(images, r) for one in tried for r in one.rollouts.values()):
            return np.ones(len(images))
        return judges.nearness(images, gts)

    verdict = verdict_on(tried, coarse)
    assert verdict.word == "care"
    assert "nothing is known of it, as all rollouts of 4 groups score alike" in texts(verdict, "doubt")


@pytest.mark.parametrize(("every", "standing"), [(20, "doubt"), (4, "bad")])
def test_missing_scores_are_counted_and_never_0(tried: list[Specimen], every: int, standing: str) -> None:
    asked = 0

    def failing(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
        nonlocal asked
        scores = judges.nearness(images, gts) + 1e6
        for i in range(len(scores)):
            asked += 1
            if asked % every == 0:
                scores[i] = np.nan if asked % 2 else np.inf
        return scores

    found = measure(tried, failing, "lowlight_rgb", lambda *_: None, batch=4)
    assert found.missing == asked // every and found.asked == asked
    assert f"no score for {found.missing} of {asked}" in texts(judge("it", found), standing)
    assert all(mean.value > 9e5 for mean in found.scores.values())


def test_a_reward_without_one_score_each_is_refused(tried: list[Specimen]) -> None:
    with pytest.raises(ValueError, match=r"scores of shape \[1\] for 3 pictures"):
        measure(tried, lambda images, gts: np.zeros(1), "lowlight_rgb", lambda *_: None)


def test_every_ladder_goes_away_from_the_ground_truth_and_the_same_way_twice(tried: list[Specimen]) -> None:
    one = tried[0]
    for kind in (TASK, *LADDERS):
        steps = ladder(one, kind)
        assert np.array_equal(steps[0], one.gt) and np.array_equal(steps, ladder(one, kind))
        psnr = protocol().psnr(steps, np.repeat(one.gt[None], len(steps), 0))
        assert (np.diff(psnr) < 0).all(), kind
    assert np.array_equal(ladder(one, TASK)[-1], one.lq)


def test_every_trick_changes_what_it_is_named_for(tried: list[Specimen]) -> None:
    image = tried[0].base

    def looks(x: np.ndarray) -> dict[str, float]:
        y = x.astype(np.float64)
        grey = y.mean(-1)
        rough = np.abs(np.diff(grey, axis=0)).mean()
        return {
            "sharpen": rough / grey.std(), "saturate": (y.max(-1) - y.min(-1)).mean(), "brighten": grey.mean(),
            "contrast": grey.std(),
        }  # fmt: skip

    for trick in TRICKS:
        strength = [looks(x)[trick] for x in (image, *tricked(image, trick, "p0"))]
        assert strength == sorted(strength) and strength[-1] > 1.1 * strength[0], trick


def test_groups_agree_with_psnr_as_they_were_made_to() -> None:
    psnr = [np.array([20.0, 21.0, 22.0, 23.0])] * 3
    found = within([np.array([1.0, 2, 3, 4]), np.array([4.0, 3, 2, 1]), np.array([5.0, 5, 5, 5])], psnr)
    assert found.spearman.value == 0 and found.spearman.count == 2 and found.flat == 1
    assert found.spearman.low == -1 and found.spearman.high == 1
    missing = within([np.array([1.0, np.nan, 3, 4]), np.array([np.nan, np.nan, 1, 2])], psnr[:2])
    assert missing.spearman.count == 1 and missing.spearman.value == pytest.approx(1)
    assert within([], []).spearman.count == 0


def test_shares_leave_missing_scores_out_and_count_ties_as_lost() -> None:
    assert beats(1, 1) == 0 and math.isnan(beats(math.nan, 1))
    assert order(np.array([3.0, 2, 2, 1])) == pytest.approx(5 / 6)
    assert order(np.array([3.0, np.nan, 1])) == 1 and math.isnan(order(np.array([np.nan, 1.0])))
    trick = trick_at(np.array([1.0, 1, 1]), np.array([2.0, 0, 0]), np.array([True, True, False]))
    assert trick.beaten.value == 0.5 and trick.gain.value == 0 and trick.beaten.count == 2
    assert Mean.of([math.nan]).count == 0


def test_sources_of_tricks_are_named_apart(tried: list[Specimen]) -> None:
    found = measure(tried[:2], judges.nearness, "lowlight_rgb", lambda *_: None)
    assert list(found.tricks) == [GROUND_TRUTH, BASE] and set(found.within) == {0, 1}
