"""A store that has lost the run is told from a process that was replaced, and gets back what is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import OpenStream
from tests.trajectories.records import make_record
from tests.trajectories.test_stream import groups, held, ids
from trajectories.audit import Ledger
from trajectories.errors import StaleEpoch, StoreLost
from trajectories.server import EmbeddedServer
from trajectories.stream import TrajectoryStream

CAUSE = "restarted without persistence or emptied, or another server answers"


@pytest.fixture
def emptied(own_server: EmbeddedServer) -> TrajectoryStream:
    """A stream in epoch 2, which has published and read, of a store that was emptied."""
    stream = TrajectoryStream(own_server.address, "run", own_server.settings)
    stream.begin_epoch()
    stream.begin_epoch()
    stream.publish(make_record("a", epoch=2))
    stream.read("learner-2", 1, epoch=2)
    stream.client.redis.flushall()
    return stream


CALLS: dict[str, Callable[[TrajectoryStream], Any]] = {
    "publish": lambda s: s.publish(make_record("b", epoch=2)),
    "read": lambda s: s.read("learner-2", 1, epoch=2),
    "wait": lambda s: s.read("learner-2", 1, block_ms=20_000, epoch=2),
    "settle": lambda s: s.settle(["1-1"], "consumed:step=1", epoch=2),
    "reclaim": lambda s: s.reclaim_others("learner-2", epoch=2),
    "unsettled": lambda s: s.unsettled(2),
    "go on": lambda s: s.require_epoch(2),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_store_that_was_emptied_is_no_process_that_was_replaced(emptied: TrajectoryStream, name: str) -> None:
    with pytest.raises(StoreLost, match=f"in epoch 2, but its store has nothing of it: .*{CAUSE}"):
        CALLS[name](emptied)
    assert held(emptied) == []


def test_without_its_consumer_group_a_store_has_lost_the_run(emptied: TrajectoryStream) -> None:
    with pytest.raises(StoreLost, match=f"has no stream of this run any more .*{CAUSE}"):
        emptied.depth()


def test_an_older_state_of_the_store_is_known_by_its_epoch(own_server: EmbeddedServer) -> None:
    with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
        stream.begin_epoch()
        stream.client.redis.set(stream.keys.epoch, 4)
        with pytest.raises(StoreLost, match=r"in epoch 5, but its store has an older state \(of epoch 4\) of it"):
            stream.unsettled(5)
        with pytest.raises(StaleEpoch, match="not the current epoch 4; this process was replaced"):
            stream.unsettled(3)


def test_settling_what_the_store_has_forgotten_is_not_passed_over(open_stream: OpenStream) -> None:
    """A store may come back from an older copy of the same epoch."""
    stream = open_stream()
    epoch = stream.begin_epoch()
    (entry,) = (stream.publish(make_record(n, run_id=stream.run_id, epoch=epoch)).entry_id for n in "a")
    assert stream.known([entry, "5-5"]) == {entry}
    with pytest.raises(StoreLost, match="1 of them, as 5-5, aren't known to its store any more"):
        stream.settle([entry, "5-5"], "consumed:step=1", token="step=1", epoch=epoch)


def test_a_store_that_has_lost_the_run_gets_its_ledger_back_once(
    own_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trajectories.stream.PAGE", 2)
    with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
        for _ in range(3):
            epoch = stream.begin_epoch()
        for name in "abcdefg":
            stream.publish(make_record(name, epoch=epoch))
        batch = stream.read("learner-3", 5, epoch=epoch)
        stream.settle(ids(batch[:3]), "consumed:step=1", token="step=1", epoch=epoch)
        stream.settle(ids(batch[3:4]), "dropped:stale", token="dropped:stale", epoch=epoch)
        stream.export_ledger(tmp_path / "ledger.json")
        before = Ledger.read(tmp_path / "ledger.json")
        stream.client.redis.flushall()
    with TrajectoryStream(own_server.address, "run", own_server.settings) as again:
        assert again.restore(before.entries, epoch) == 4
        assert again.restore(before.entries, epoch) == 0
        assert again.epoch() == epoch and again.begin_epoch() == epoch + 1
        assert again.published_groups() == set("abcd") and again.unsettled() == {}
        assert [e for e in again.ledger().entries] == [e for e in before.entries if not e.is_pending]
        # A learner that resumes repeats its last settlement; what was lost is made again, under later ids.
        assert again.settle(ids(batch[:3]), "consumed:step=1", token="step=1", epoch=4) == ["repeated"] * 3
        for name in "efg":
            again.publish(make_record(name, epoch=4))
        assert groups(again.read("learner-4", 9, epoch=4)) == ["e", "f", "g"]
        report = again.audit()
        assert report.ok and (report.published, report.consumed, report.pending) == (7, 3, 3), report.render()
        assert [e.group_id for e in again.ledger().entries] == list("abcdefg")


def test_restoring_into_an_older_state_settles_what_waits_there(open_stream: OpenStream) -> None:
    stream = open_stream()
    stream.begin_epoch()
    publish_at = [stream.publish(make_record(n, run_id=stream.run_id, epoch=1)).entry_id for n in "ab"]
    before = stream.ledger().entries
    settled = [replace(before[0], outcomes=("consumed:step=4",))]
    assert stream.restore(settled, 6) == 1 and stream.epoch() == 6
    assert stream.unsettled() == {"b": publish_at[1]} and held(stream) == ["payload:b"]
    assert stream.audit().ok and stream.audit().consumed == 1


def test_restoring_nothing_still_moves_the_epoch_on(open_stream: OpenStream) -> None:
    stream = open_stream()
    assert stream.restore((), 7) == 0 and stream.begin_epoch() == 8
