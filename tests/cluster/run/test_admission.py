"""The bound on staleness."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.run.admission import Admission


def test_a_synchronous_run_admits_one_batch_a_version() -> None:
    admission = Admission(batch_groups=4, max_staleness=0)
    assert admission.admit(0, 2) and admission.admit(1, 2) and not admission.admit(2, 2)
    admission.finished(0, 2)
    assert not admission.admit(2, 2)
    admission.advanced(1)
    assert admission.admit(2, 2)


def test_groups_that_were_lost_or_dropped_are_replaced() -> None:
    admission = Admission(batch_groups=4, max_staleness=0)
    admission.admit(0, 2), admission.admit(1, 2)
    admission.lost(0)
    assert admission.admit(0, 2)
    admission.finished(0, 2)
    admission.finished(1, 0)
    assert admission.capacity == 2
    admission.dropped(1)
    assert admission.capacity == 3


def test_after_recovery_the_waiting_groups_count() -> None:
    admission = Admission(batch_groups=4, max_staleness=1)
    admission.restore(version=5, waiting=3)
    assert admission.capacity == 8 - 3


@pytest.mark.parametrize("eta", [0, 1, 3])
@given(data=st.data())
def test_groups_that_finish_in_order_are_never_staler_than_the_bound(eta: int, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, 5))
    admission, born, stream = Admission(batch, eta), {}, []
    running, index = [], 0
    for action in data.draw(st.lists(st.sampled_from(["roll", "finish", "learn"]), max_size=60)):
        if action == "roll" and admission.admit(index, 1):
            born[index] = admission.version
            running.append(index)
            index += 1
        elif action == "finish" and running:
            done = running.pop(0)
            admission.finished(done, 1)
            stream.append(done)
        elif action == "learn" and len(stream) >= batch:
            used, stream = stream[:batch], stream[batch:]
            assert all(admission.version - born[i] <= eta for i in used)
            admission.advanced(admission.version + 1)
