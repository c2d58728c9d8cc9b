"""Which images are rolled out, and what is given out again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.work import WorkSequence
from cluster.run.work_queue import WorkQueue

IDS = [f"image{i}" for i in range(7)]


def test_every_pass_visits_every_image_once() -> None:
    sequence = WorkSequence(IDS, 1, seed=3)
    passes = [[sequence.item(i).image_ids[0] for i in range(start, start + 7)] for start in (0, 7)]
    assert sorted(passes[0]) == sorted(passes[1]) == IDS
    assert passes[0] != passes[1]


def test_an_item_depends_on_its_index_and_the_seed_only() -> None:
    assert WorkSequence(IDS, 3, 1).item(11) == WorkSequence(list(reversed(IDS)), 3, 1).item(11)
    assert WorkSequence(IDS, 3, 1).item(11) != WorkSequence(IDS, 3, 2).item(11)


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 3), st.lists(st.integers(0, 40), max_size=12))
def test_items_asked_for_in_any_order_are_those_of_freshly_drawn_passes(
    count: int, size: int, seed: int, indexes: list[int]
) -> None:
    ids = [f"{i:02d}" for i in range(count)]
    sequence = WorkSequence(ids, size, seed)
    for index in indexes:
        places = [divmod(place, count) for place in range(index * size, (index + 1) * size)]
        passes = [np.random.default_rng((seed, number)).permutation(count) for number, _ in places]
        expected = tuple(ids[order[place]] for order, (_, place) in zip(passes, places, strict=True))
        assert sequence.item(index).image_ids == expected


def test_the_order_is_the_same_on_every_machine() -> None:
    """Resumed runs and group ids rest on it; numpy promises it for a version only."""
    item = WorkSequence([f"image{i:03d}" for i in range(100)], 8, seed=7).item(12)
    assert [int(i.removeprefix("image")) for i in item.image_ids] == [60, 21, 41, 11, 82, 2, 6, 60]


def test_a_pass_is_drawn_once_and_only_two_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    permutation = WorkSequence._permutation

    def counted(self: WorkSequence, number: int) -> np.ndarray:
        drawn.append(number)
        return permutation(self, number)

    monkeypatch.setattr(WorkSequence, "_permutation", counted)
    sequence = WorkSequence([f"{i:03d}" for i in range(100)], 7, 0)
    for index in range(100):  # seven passes, with batches across their borders
        sequence.item(index)
        assert len(sequence._passes) <= 2
        assert all(order.nbytes == 400 for order in sequence._passes.values())
    assert drawn == list(range(7))


@pytest.mark.parametrize(("ids", "size", "message"), [([], 1, "no training images"), (IDS, 0, "images_per_batch=0")])
def test_a_sequence_of_nothing_is_refused(ids: list[str], size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkSequence(ids, size, 0)


def test_lost_items_come_again_first_and_others_once() -> None:
    queue = WorkQueue(WorkSequence(IDS, 2, 0))
    first, second = queue.take(), queue.take()
    queue.put_back(first)
    assert [queue.take().index, queue.take().index] == [first.index, second.index + 1]


def test_a_resumed_run_skips_what_was_published_whole() -> None:
    published = ["00000000-000", "00000000-001", "00000001-000", "00000002-000", "00000002-001"]
    queue = WorkQueue(WorkSequence(IDS, 2, 0), published)
    assert [queue.take().index for _ in range(3)] == [1, 3, 4]
