"""The bound on staleness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.run.admission import capacity


def test_a_synchronous_run_admits_one_batch_a_version() -> None:
    assert capacity(4, 0, 9, [], [], []) == 4
    assert capacity(4, 0, 9, ["a", "b"], [], ["c", "d"]) == 0
    assert capacity(4, 0, 9, ["a", "b", "c", "d"], ["a", "b", "c", "d"], []) == 4  # a step has used them


def test_a_group_whose_report_was_lost_or_that_is_published_again_counts_once() -> None:
    """A resumed run rolls out again what its dead driver had published: it starved at 4 of 8 groups."""
    assert capacity(8, 0, 9, ["a", "b", "c", "d"], [], ["a", "b", "c", "d"]) == 4


def test_a_group_that_was_dropped_makes_room_at_once() -> None:
    assert capacity(4, 0, 9, ["a", "b", "c"], [], []) - capacity(4, 0, 9, ["a", "b", "c", "d"], [], []) == 1


@pytest.mark.parametrize("eta", [0, 1, 3])
@given(data=st.data())
def test_groups_that_finish_in_order_are_never_staler_than_the_bound(eta: int, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 5))
    version, born, stream, used, running, index = 0, {}, [], set(), [], 0
    for action in data.draw(st.lists(st.sampled_from(["roll", "finish", "learn", "settle"]), max_size=60)):
        if action == "roll" and capacity(batch, eta, 99, stream, used, running) >= 1:
            born[str(index)] = version
            running.append(str(index))
            index += 1
        elif action == "finish" and running:
            stream.append(running.pop(0))
        elif action == "learn" and len(stream) - len(used) >= batch:
            taken = [g for g in stream if g not in used][:batch]
            assert all(version - born[g] <= eta for g in taken)
            used |= set(taken)
            version += 1
        elif action == "settle":
            stream, used = [g for g in stream if g not in used], set()


def test_nothing_is_rolled_out_that_no_step_will_use() -> None:
    assert capacity(4, 1, 1, [], [], []) == 4
    assert capacity(4, 1, 0, [], [], []) == 0
