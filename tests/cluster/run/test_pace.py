"""How long a run will take yet, from simulated clocks."""

from __future__ import annotations

import re

import pytest

from cluster.run.pace import Pace, about, overlap


def seconds(text: str) -> float:
    found = re.fullmatch(r"about (\d+) (s|min) left", text)
    assert found is not None, text
    return int(found[1]) * {"s": 1, "min": 60}[found[2]]


def test_nothing_is_said_before_an_iteration_was_measured_and_when_nothing_is_left() -> None:
    pace = Pace(100.0, ahead=True)
    pace.passed(150.0, evaluating=True)
    pace.evaluated()
    assert pace.left(10, 2) == ""
    pace.learned()
    assert pace.left(10, 2) and pace.left(0, 2) and pace.left(0, 0) == ""


def test_the_time_before_the_loop_is_no_part_of_an_iteration() -> None:
    pace = Pace(1000.0, ahead=False)
    pace.passed(1020.0, evaluating=False)
    pace.learned()
    assert pace.left(6, 0) == "about 2 min left"


def test_a_first_iteration_counts_as_those_after_it_whose_rollouts_and_step_overlap() -> None:
    """Figures of a run of the demo: 8 iterations, three parts an evaluation, of which one came before and two after."""
    pace = Pace(0.0, ahead=True)
    for now, evaluating in ((10.0, True), (20.0, True), (30.0, True)):
        pace.passed(now, evaluating)
        pace.evaluated()
    pace.passed(53.0, False)
    pace.learned(step_s=21.2)
    assert pace.iteration_s == pytest.approx(21.2) and pace.part_s == pytest.approx(5.0)
    truth = 26.2 + 20.7 + 22.6 + 20.5 + 21.8 + 21.5 + 18.3 + 2 * 15
    assert seconds(pace.left(7, 6)) == pytest.approx(truth, abs=31)  # it is told in minutes
    one_after_the_other = Pace(0.0, ahead=False)
    one_after_the_other.passed(53.0, False)
    one_after_the_other.learned(step_s=21.2)
    assert one_after_the_other.iteration_s == pytest.approx(53.0)


def test_later_iterations_replace_the_first_and_old_ones_are_forgotten() -> None:
    pace, now = Pace(0.0, ahead=False), 0.0
    for took in (100.0, *[30.0] * 5):
        now += took
        pace.passed(now, evaluating=False)
        pace.learned()
    assert pace.iteration_s == pytest.approx(30.0)
    for _ in range(20):
        now += 12.0
        pace.passed(now, evaluating=False)
        pace.learned()
    assert pace.iteration_s == pytest.approx(12.0)


def test_an_evaluation_beside_training_counts_once_and_not_as_slower_iterations() -> None:
    """Every third iteration has an evaluation of two parts, which makes it 8 s longer than the others' 20 s."""
    pace, now = Pace(0.0, ahead=False), 0.0
    for i in range(1, 10):
        if i % 3 == 0:
            for _ in range(2):
                now += 8.0  # turn and turn about: half of it is training's
                pace.passed(now, evaluating=True)
                pace.evaluated()
            now += 12.0
        else:
            now += 20.0
        pace.passed(now, evaluating=False)
        pace.learned()
    assert pace.iteration_s == pytest.approx(20.0) and pace.part_s == pytest.approx(4.0)
    assert seconds(pace.left(30, 20)) == 11 * 60  # 30 x 20 s + 10 x 8 s


def test_evaluations_of_which_none_was_measured_are_told_apart() -> None:
    pace = Pace(0.0, ahead=False)
    pace.passed(60.0, evaluating=False)
    pace.learned()
    assert pace.left(10, 4) == "about 10 min left, besides evaluations"
    assert pace.left_s(10, 4) is None and pace.left_s(10, 0) == pytest.approx(600.0)


def test_a_learner_that_had_to_be_started_again_makes_no_iteration_longer() -> None:
    pace = Pace(0.0, ahead=False)
    for began in (0.0, 10.0):
        pace.passed(began + 10.0, evaluating=False)
        pace.learned()
    pace.passed(400.0, evaluating=False)
    pace.interrupted(500.0)
    pace.passed(510.0, evaluating=False)
    pace.learned()
    assert pace.iteration_s == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((2.0, "10 s"), (41.0, "40 s"), (94.0, "90 s"), (95.0, "2 min"), (14.4 * 60, "14 min"), (89.4 * 60, "89 min")),
        *((95 * 60.0, "1 h 40 min"), (3.36 * 3600, "3 h 20 min"), (119 * 60.0, "2 h"), (60 * 3600.0, "2.5 days")),
    ],
)
def test_an_estimate_is_told_as_exactly_as_it_is_one(value: float, said: str) -> None:
    assert about(value) == f"about {said}"


@pytest.mark.parametrize(
    ("rolling_s", "learning_s", "iteration_s", "share"),
    [
        (10.0, 20.0, 30.0, 0.0),  # one after the other
        (10.0, 20.0, 35.0, 0.0),  # and both waited for something else
        (10.0, 20.0, 20.0, 1.0),  # all of the rollouts while the learner learned
        (10.0, 20.0, 25.0, 0.5),
        (20.0, 10.0, 22.5, 0.75),
        (30.0, 10.0, 5.0, 1.0),  # rollouts of an earlier iteration
        *((0.0, 10.0, 10.0, None), (10.0, None, 10.0, None), (10.0, 0.0, 10.0, None)),
    ],
)
def test_overlap_is_the_share_of_the_shorter_that_the_other_hid(
    rolling_s: float, learning_s: float | None, iteration_s: float, share: float | None
) -> None:
    assert overlap(rolling_s, learning_s, iteration_s) == share
