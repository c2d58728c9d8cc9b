"""Batches from a real stream: `read` and `settle` of a server in a process of its own."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from learner.batch import Refused
from learner.source import Batch, BatchSource, SourceSettings, Stopped
from tests.conftest import OpenStream
from tests.trajectories.records import make_record
from tests.trajectories.test_schema import with_metadata
from trajectories.errors import StaleEpoch
from trajectories.schema import encode, encode_summary
from trajectories.stream import TrajectoryStream

FINGERPRINT, REWARD = "ddim-5", make_record("x").meta.reward_version  # of make_record, whose weights_version is 7


@pytest.fixture
def stream(open_stream: OpenStream) -> TrajectoryStream:
    return open_stream()


def source(stream: TrajectoryStream, epoch: int = 0, **settings: Any) -> BatchSource:
    given = {"groups_per_step": 2, "max_staleness": 1, "timeout_s": 1.0} | settings
    return BatchSource(stream, stream, SourceSettings(**given), FINGERPRINT, REWARD, epoch)


def collect(gather: BatchSource, version: int, wait_s: float = 20.0) -> Batch:
    stop = threading.Event()
    timer = threading.Timer(wait_s, stop.set)
    timer.start()
    try:
        return gather.collect(version, stop)
    finally:
        timer.cancel()


def names(batch: Batch) -> list[str]:
    return [g.meta.group_id for g in batch.groups]


def publish(stream: TrajectoryStream, *groups: str, **meta: Any) -> None:
    for name in groups:
        record = make_record(name, run_id=stream.run_id)
        stream.publish(replace(record, meta=replace(record.meta, **meta)))


def test_a_batch_is_ordered_by_group_whoever_arrived_first(stream: TrajectoryStream) -> None:
    publish(stream, "g1", "g0", "g2")
    batch = collect(source(stream), 8)
    assert names(batch) == ["g0", "g1"] and batch.staleness == [1, 1]


def test_groups_that_cannot_be_trained_on_are_dropped_with_their_reason(stream: TrajectoryStream) -> None:
    publish(stream, "old", weights_version=5)
    publish(stream, "other", scheduler_fingerprint="ddim-9")
    publish(stream, "judged", reward_version="another-2")
    publish(stream, "g0", "g1")
    gather = source(stream)
    assert names(collect(gather, 7)) == ["g0", "g1"]
    dropped, refused = gather.take_counts()
    assert dropped == {"stale": 1, "fingerprint": 1, "reward_version": 1}
    found = "rolled out with schedule ddim-9, the learner replays ddim-5"
    assert refused == [Refused("other", "fingerprint", found)] and gather.take_counts() == ({}, [])
    report = stream.audit()
    assert report.ok and report.dropped_rows == {"fingerprint": 2, "reward_version": 2, "stale": 2}
    assert not report.consumed


def test_a_request_to_stop_ends_the_wait_and_what_was_read_stays_for_the_next_call(stream: TrajectoryStream) -> None:
    publish(stream, "g0")
    gather = source(stream)
    with pytest.raises(Stopped):
        collect(gather, 7, wait_s=0.3)
    publish(stream, "g1")
    assert names(collect(gather, 7)) == ["g0", "g1"]


def test_a_group_that_waited_too_long_is_dropped_when_its_turn_comes(stream: TrajectoryStream) -> None:
    publish(stream, "g0")
    gather = source(stream)
    with pytest.raises(Stopped):
        collect(gather, 7, wait_s=0.3)
    publish(stream, "g1", "g2", weights_version=9)
    assert names(collect(gather, 9)) == ["g1", "g2"]
    assert gather.take_counts()[0] == {"stale": 1}


def test_refused_groups_are_quarantined_and_the_batch_is_filled_up(stream: TrajectoryStream) -> None:
    publish(stream, "g0", "g1", "g2")
    gather = source(stream)
    batch = collect(gather, 7)
    gather.refuse(batch, [Refused("g0", "picture", "a.png is cut off")])
    assert names(collect(gather, 7)) == ["g1", "g2"]
    assert gather.take_counts() == ({"picture": 1}, [Refused("g0", "picture", "a.png is cut off")])
    assert stream.audit().dropped == {"picture": 1}


def test_nothing_is_settled_before_the_step_is_durable(stream: TrajectoryStream) -> None:
    publish(stream, "g0", "g1")
    gather = source(stream)
    gather.use(collect(gather, 7), 8)
    assert stream.audit().pending_rows == 4 and gather.used_groups() == {"g0", "g1"}
    gather.settle(gather.not_yet_durable())
    assert (stream.audit().consumed_rows, stream.audit().pending_rows) == (4, 0)
    assert gather.used_groups() == set() and gather.not_yet_durable() == {}


def test_the_reader_remembers_nothing_of_what_was_settled_by_another_connection(open_stream: OpenStream) -> None:
    reading, settling = open_stream(), open_stream()
    gather = BatchSource(reading, settling, SourceSettings(groups_per_step=2), FINGERPRINT, REWARD, 0)
    publish(reading, "g0", "g1", "g2")
    gather.use(collect(gather, 7), 8)
    gather.settle(gather.not_yet_durable())
    assert not reading._deliveries._delivered[gather.consumer]
    publish(reading, "g3")
    assert names(collect(gather, 7)) == ["g2", "g3"]


def test_a_settlement_repeated_after_a_restart_counts_once(stream: TrajectoryStream) -> None:
    publish(stream, "g0", "g1")
    gather = source(stream)
    gather.use(collect(gather, 7), 8)
    recorded = gather.not_yet_durable()
    gather.settle(recorded)
    source(stream).settle(recorded)
    report = stream.audit()
    assert report.ok and report.consumed_rows == 4


def test_a_reader_that_was_replaced_loses_nothing_and_settles_nothing(open_stream: OpenStream) -> None:
    """Cut off from the rest, it took entries that its successor never saw, and settled them when it came back."""
    old_stream = open_stream()
    new_stream = open_stream()
    first = old_stream.begin_epoch()
    publish(old_stream, "g0", "g1", "g2", "g3", epoch=first)
    old = source(old_stream, first)
    batch = collect(old, 7)
    second = new_stream.begin_epoch()
    with pytest.raises(StaleEpoch):
        collect(old, 7, wait_s=5)
    old.use(batch, 8)
    with pytest.raises(StaleEpoch):
        old.settle(old.not_yet_durable())
    new = source(new_stream, second)
    both = names(collect(new, 7)) + names(collect(new, 7))
    assert sorted(both) == ["g0", "g1", "g2", "g3"]


def test_a_record_of_another_schema_is_dropped_by_its_name(stream: TrajectoryStream) -> None:
    record = make_record("past", run_id=stream.run_id)
    payload, summary = (with_metadata(f(record), schema_version=b"1") for f in (encode, encode_summary))
    stream.publish_payload("past", payload, summary, rows=2, epoch=0)
    publish(stream, "g0", "g1")
    gather = source(stream)
    assert names(collect(gather, 7)) == ["g0", "g1"]
    assert gather.take_counts()[0] == {"schema": 1} and stream.audit().dropped == {"schema": 1}


@pytest.mark.parametrize("wrong", [{"groups_per_step": 0}, {"max_staleness": -1}, {"timeout_s": 0}])
def test_settings_without_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SourceSettings(**wrong)


def test_a_batch_that_is_late_says_how_many_groups_came_also_while_the_ranks_check_them() -> None:
    """Of groups that have come, actors aren't to blame."""
    stream = cast(TrajectoryStream, SimpleNamespace(settle=lambda *_, **__: None))
    gather = source(stream, timeout_s=900)
    gather._reclaimed = True
    summaries = iter([[entry("g0")], [entry("g1")]])
    stream.read = lambda *_, **__: next(summaries)  # type: ignore[method-assign]
    assert gather.lack() == "0 of 2 groups came within source.timeout_s=900 s"
    batch = collect(gather, 7)
    assert (
        gather.lack()
        == "2 groups came, and the learner's ranks did not read and check them within source.timeout_s=900 s"
    )
    gather.refuse(batch, [Refused("g0", "picture", "gone")])
    assert gather.lack() == "1 of 2 groups came within source.timeout_s=900 s"


def entry(name: str) -> Any:
    meta = replace(make_record(name).meta, scheduler_fingerprint=FINGERPRINT)
    return SimpleNamespace(entry_id=name, group_id=name, summary=SimpleNamespace(meta=meta))
