"""Which images are rolled out, and what is given out again."""

from __future__ import annotations

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


def test_lost_items_come_again_first_and_others_once() -> None:
    queue = WorkQueue(WorkSequence(IDS, 2, 0))
    first, second = queue.take(), queue.take()
    queue.put_back(first)
    assert [queue.take().index, queue.take().index] == [first.index, second.index + 1]


def test_a_resumed_run_skips_what_was_published_whole() -> None:
    published = ["00000000-000", "00000000-001", "00000001-000", "00000002-000", "00000002-001"]
    queue = WorkQueue(WorkSequence(IDS, 2, 0), published)
    assert [queue.take().index for _ in range(3)] == [1, 3, 4]
