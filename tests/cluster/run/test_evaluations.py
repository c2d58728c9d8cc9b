"""Evaluations in parts: nothing is lost, nothing counts twice, one bad picture costs one picture."""

from __future__ import annotations

import numpy as np

from cluster.run.evaluations import Evaluation, EvaluationPart, Evaluations
from restoration.evaluate import Row

IDS = ["a", "b", "c", "d"]
PAIRS, FOURS = [["a", "b"], ["d"], ["c"]], [["a", "b", "d"], ["c"]]


def rows(part: EvaluationPart) -> list[Row]:
    return [Row(i, {"psnr": float(ord(i))}) for i in part.image_ids]


def finish(evaluations: Evaluations) -> Evaluation:
    while (whole := evaluations.completed()) is None:
        part = evaluations.take()
        assert part is not None
        evaluations.done(part, rows(part), {i: np.zeros(1) for i in part.keep})
    return whole


def test_a_part_is_a_block_and_rows_come_in_the_order_of_the_set() -> None:
    evaluations = Evaluations(IDS, PAIRS)
    evaluations.begin(1, "now", None, keep=["c"])
    parts = [evaluations.take() for _ in range(4)]
    assert [p.image_ids for p in parts if p] == [("a", "b"), ("d",), ("c",)] and parts[3] is None
    for part in reversed(parts[:3]):
        assert evaluations.completed() is None
        evaluations.done(part, rows(part), {i: np.zeros(1) for i in part.keep})
    whole = evaluations.completed()
    assert whole is not None and [r.image_id for r in whole.ordered_rows()] == IDS and set(whole.images) == {"c"}
    assert len(evaluations) == 0


def test_the_next_evaluation_waits_for_the_one_before() -> None:
    evaluations = Evaluations(IDS, FOURS)
    evaluations.begin(0, "base", None)
    evaluations.begin(1, "now", None)
    first = [evaluations.take(), evaluations.take()]
    assert evaluations.take() is None
    for part in first:
        evaluations.done(part, rows(part), {})
    whole = evaluations.completed()
    assert whole is not None and whole.who == "base" and evaluations.take() is not None


def test_a_part_whose_actor_died_is_given_out_again() -> None:
    evaluations = Evaluations(IDS, FOURS)
    evaluations.begin(1, "now", None)
    lost = evaluations.take()
    evaluations.again(lost)
    assert len(finish(evaluations).rows) == 4


def test_one_picture_that_cannot_be_evaluated_is_found_and_left_out() -> None:
    evaluations = Evaluations(IDS, FOURS)
    evaluations.begin(1, "now", None)
    while (whole := evaluations.completed()) is None:
        part = evaluations.take()
        if "b" in part.image_ids:
            evaluations.poisoned(part, "picture", "b is cut off")
        else:
            evaluations.done(part, rows(part), {})
    assert [r.image_id for r in whole.ordered_rows()] == ["a", "c", "d"]
    assert [(q.what, q.reason, q.detail) for q in whole.left_out] == [("b", "picture", "b is cut off")]


def test_an_answer_to_an_evaluation_that_was_given_up_changes_nothing() -> None:
    """The learner fell back behind it; the same iteration comes again with other weights."""
    evaluations = Evaluations(IDS, FOURS)
    evaluations.begin(2, "now", None)
    old = evaluations.take()
    evaluations.forget_after(1)
    evaluations.begin(2, "now", None, without=["a"])
    for late in (evaluations.done, lambda p, *_: evaluations.again(p), lambda p, *_: evaluations.poisoned(p, "x", "y")):
        late(old, rows(old), {})
    assert list(finish(evaluations).rows) == ["b", "d", "c"]
