"""Batches from a real stream: `read` and `settle` of a server in a process of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from learner.source import BatchSource, BatchTimeout, SourceSettings
from tests.conftest import OpenStream
from tests.trajectories.records import make_record
from tests.trajectories.test_schema import with_metadata
from trajectories.schema import encode, encode_summary
from trajectories.stream import TrajectoryStream

FINGERPRINT = "ddim-5"  # of make_record, whose weights_version is 7


@pytest.fixture
def stream(open_stream: OpenStream) -> TrajectoryStream:
    return open_stream()


def source(stream: TrajectoryStream, **settings: Any) -> BatchSource:
    given = {"groups_per_step": 2, "max_staleness": 1, "timeout_s": 1.0} | settings
    return BatchSource(stream, "learner", SourceSettings(**given), FINGERPRINT)


def publish(stream: TrajectoryStream, *names: str, **meta: Any) -> None:
    for name in names:
        record = make_record(name, run_id=stream.run_id)
        stream.publish(replace(record, meta=replace(record.meta, **meta)))


def test_a_batch_is_ordered_by_group_whoever_arrived_first(stream: TrajectoryStream) -> None:
    publish(stream, "g1", "g0", "g2")
    batch = source(stream).collect(version=8)
    assert [g.meta.group_id for g in batch.groups] == ["g0", "g1"]
    assert batch.staleness == [1, 1] and batch.dropped == {}


def test_groups_that_cannot_be_trained_on_are_dropped_with_their_reason(stream: TrajectoryStream) -> None:
    publish(stream, "old", weights_version=5)
    publish(stream, "other", scheduler_fingerprint="ddim-9")
    past = make_record("past", run_id=stream.run_id)
    summary = with_metadata(encode_summary(past), schema_version=b"0")
    stream.publish_payload("past", encode(past), summary, rows=2, epoch=0)
    publish(stream, "g0", "g1")
    batch = source(stream).collect(version=7)
    assert [g.meta.group_id for g in batch.groups] == ["g0", "g1"]
    assert batch.dropped == {"stale": 1, "fingerprint": 1, "schema": 1}
    report = stream.audit()
    assert report.ok and report.dropped_rows == {"fingerprint": 2, "schema": 2, "stale": 2} and not report.consumed


def test_a_half_batch_times_out_with_its_count_and_stays_for_the_next_call(stream: TrajectoryStream) -> None:
    publish(stream, "g0")
    gather = source(stream, timeout_s=0.3)
    with pytest.raises(BatchTimeout, match="1 of 2 groups"):
        gather.collect(version=7)
    publish(stream, "g1")
    assert [g.meta.group_id for g in gather.collect(version=7).groups] == ["g0", "g1"]


def test_nothing_is_settled_before_the_step_is_durable(stream: TrajectoryStream) -> None:
    publish(stream, "g0", "g1")
    gather = source(stream)
    gather.collect(version=7)
    assert stream.audit().pending_rows == 4
    gather.settle()
    assert (stream.audit().consumed_rows, stream.audit().pending_rows) == (4, 0)


def test_a_settlement_repeated_after_a_restart_counts_once(stream: TrajectoryStream) -> None:
    publish(stream, "g0", "g1")
    gather = source(stream)
    gather.collect(version=7)
    recorded = dict(gather.used)
    gather.settle()
    source(stream).settle(recorded)
    report = stream.audit()
    assert report.ok and report.consumed_rows == 4


@pytest.mark.parametrize("wrong", [{"groups_per_step": 0}, {"max_staleness": -1}, {"timeout_s": 0}])
def test_settings_without_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SourceSettings(**wrong)
