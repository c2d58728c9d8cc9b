"""What is only looked at and couldn't be made, counted from several threads."""

from __future__ import annotations

from cluster.run.looking import ForLooking


def test_what_is_missing_is_told_as_of_one_instant_though_other_threads_go_on_counting() -> None:
    told: list[str] = []
    looking = ForLooking(told.append)
    looking.lack("a strip", OSError("full"))
    counts = iter(looking.missing.items())
    assert next(counts) == ("a strip", 1)
    looking.lack("the pulse", OSError("full"))  # by its own thread, while the driver sums up
    looking.lack("a strip", OSError("full"))
    assert list(counts) == [] and looking.missing == {"a strip": 2, "the pulse": 1} and len(told) == 2
