from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable

import pyarrow as pa
import pytest
import torch

from tests.conftest import OpenStream
from tests.trajectories.records import assert_same, make_record
from tests.trajectories.test_schema import with_metadata
from trajectories.consumer import Entry
from trajectories.errors import BackPressureTimeout, RecordTooLarge, SchemaError, StaleEpoch
from trajectories.schema import Trajectories, encode
from trajectories.settings import StoreAddress
from trajectories.stream import TrajectoryStream

SIZE = len(encode(make_record(run_id="run-00000000")))


def publish(stream: TrajectoryStream, *names: str) -> list[str]:
    return [stream.publish(make_record(name, run_id=stream.run_id), timeout_s=5).entry_id for name in names]


def groups(entries: list[Entry]) -> list[str]:
    return [entry.group_id for entry in entries]


def ids(entries: list[Entry]) -> list[str]:
    return [entry.entry_id for entry in entries]


def test_a_published_record_is_read_as_it_was_and_settled_once(open_stream: OpenStream) -> None:
    stream = open_stream()
    record = make_record("g0", run_id=stream.run_id, dtype="bfloat16")
    receipt = stream.publish(record)
    (entry,) = stream.read("rank0", 8)
    assert isinstance(entry.record, Trajectories)
    assert_same(entry.record, record)
    assert (entry.entry_id, entry.group_id, entry.rows) == (receipt.entry_id, "g0", 2)
    assert (stream.depth().entries, stream.depth().nbytes, stream.depth().pending) == (1, entry.nbytes, 1)
    assert stream.settle([entry.entry_id], "consumed:step=1") == ["settled"]
    assert (stream.depth().entries, stream.depth().nbytes, stream.depth().pending) == (0, 0, 0)
    report = stream.audit()
    assert report.ok and (report.published_rows, report.consumed_rows, report.pending_rows) == (2, 2, 0)


def test_entries_are_read_in_order_of_publication_and_each_once(open_stream: OpenStream) -> None:
    stream = open_stream()
    names = [f"g{n}" for n in range(10)]
    publish(stream, *names)
    assert groups(stream.read("rank0", 4)) + groups(stream.read("rank0", 100)) == names
    assert stream.read("rank0", 4) == []


def test_publishing_a_group_again_changes_nothing_before_and_after_its_settlement(open_stream: OpenStream) -> None:
    stream = open_stream()
    first = stream.publish(make_record("g0", run_id=stream.run_id, seed=1))
    again = stream.publish(make_record("g0", run_id=stream.run_id, seed=2))
    assert (again.entry_id, first.repeated, again.repeated) == (first.entry_id, False, True)
    (entry,) = stream.read("rank0", 8)
    assert isinstance(entry.record, Trajectories) and entry.record.meta.seed == 1
    stream.settle([entry.entry_id], "consumed:step=1")
    assert stream.publish(make_record("g0", run_id=stream.run_id)).repeated
    assert stream.depth().entries == 0 and stream.audit().ok


def test_many_publishers_of_one_group_publish_it_once(open_stream: OpenStream) -> None:
    stream, receipts = open_stream(), []
    record = make_record("g0", run_id=stream.run_id, shape=(4, 4, 4, 16, 16))
    threads = [threading.Thread(target=lambda: receipts.append(stream.publish(record))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.repeated for r in receipts) == [False] + [True] * 7
    assert len({r.entry_id for r in receipts}) == 1 and stream.audit().ok and stream.depth().entries == 1


@pytest.mark.parametrize("bound", [{"max_entries": 2}, {"max_bytes": 2 * SIZE + 10}])
def test_a_full_stream_blocks_publishers_until_the_deadline_and_goes_on_after_a_settlement(
    open_stream: OpenStream, bound: dict[str, int]
) -> None:
    stream = open_stream(**bound)
    publish(stream, "g0", "g1")
    start = time.monotonic()
    with pytest.raises(BackPressureTimeout, match="stream holds 2 of .* groups"):
        stream.publish(make_record("g2", run_id=stream.run_id), timeout_s=0.3)
    assert 0.2 < time.monotonic() - start < 2
    held = stream.read("rank0", 1)  # reading alone makes no room: the record may still have to be redelivered
    with pytest.raises(BackPressureTimeout):
        stream.publish(make_record("g2", run_id=stream.run_id), timeout_s=0.05)
    timer = threading.Timer(0.3, lambda: stream.settle(ids(held), "consumed:step=1"))
    timer.start()
    receipt = stream.publish(make_record("g2", run_id=stream.run_id), timeout_s=5)
    timer.join()
    assert receipt.waited_s > 0.2
    assert groups(stream.read("rank0", 8)) == ["g1", "g2"] and stream.audit().ok


def test_a_bound_holds_when_publishers_race_for_the_last_room(open_stream: OpenStream) -> None:
    stream, refused = open_stream(max_entries=3), []

    def try_publish(name: str) -> None:
        try:
            stream.publish(make_record(name, run_id=stream.run_id, shape=(4, 4, 4, 16, 16)), timeout_s=0.2)
        except BackPressureTimeout:
            refused.append(name)

    threads = [threading.Thread(target=try_publish, args=(f"g{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.depth().entries == 3 and len(refused) == 5
    assert stream.audit().ok  # also: no record of a refused group is left behind
    left = list(stream.client.redis.scan_iter(stream.keys.payload_prefix.replace("{", "\\{") + "*"))
    assert len(left) == 3


def test_a_record_larger_than_the_stream_is_refused_at_once(open_stream: OpenStream) -> None:
    stream = open_stream(max_bytes=1000)
    with pytest.raises(RecordTooLarge, match="raise store.max_bytes"):
        publish(stream, "g0")


def test_consumers_share_the_entries_without_overlap(open_stream: OpenStream) -> None:
    stream, other = open_stream(), open_stream()
    names = [f"g{n}" for n in range(9)]
    publish(stream, *names)
    parts = [stream.read("rank0", 4), other.read("rank1", 2), stream.read("rank0", 9)]
    assert [len(part) for part in parts] == [4, 2, 3]
    assert sorted(name for part in parts for name in groups(part)) == names
    assert (stream.pending_count("rank0"), stream.pending_count("rank1"), stream.pending_count()) == (7, 2, 9)


def test_a_blocking_read_waits_for_the_first_entry_and_gives_up_at_its_deadline(open_stream: OpenStream) -> None:
    stream = open_stream(op_timeout_s=0.4)  # shorter than the wait, which must not end as an error
    start = time.monotonic()
    assert stream.read("rank0", 1, block_ms=700) == []
    assert 0.6 < time.monotonic() - start < 2
    other = open_stream()
    timer = threading.Timer(0.5, lambda: publish(other, "g0"))
    timer.start()
    assert groups(stream.read("rank0", 4, block_ms=5000)) == ["g0"]
    timer.join()


def test_a_restarted_consumer_first_gets_what_it_read_and_did_not_settle(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, *"abcdef")
    batch = stream.read("rank0", 4)
    stream.settle(ids(batch[:1]), "consumed:step=1")
    restarted = open_stream()
    assert groups(restarted.read("rank0", 2)) == ["b", "c"]
    assert groups(restarted.read("rank0", 9)) == ["d", "e", "f"]
    fresh = open_stream()
    assert fresh.read("rank0", 9, own_pending_first=False) == []
    assert groups(fresh.read("rank0", 9)) == list("bcdef")


def test_rewinding_hands_out_unsettled_entries_again_in_the_same_order(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, *"abcd")
    batch = stream.read("rank0", 3)
    stream.settle(ids(batch[:1]), "consumed:step=1")
    stream.rewind("rank0")
    assert groups(stream.read("rank0", 9)) == ["b", "c", "d"]


def test_entries_of_a_dead_consumer_pass_to_another(open_stream: OpenStream) -> None:
    dead, stream = open_stream(), open_stream()
    publish(dead, *"abcdef")
    dead.read("dead", 5)
    own = stream.read("rank0", 1)
    assert stream.reclaim("rank0", min_idle_ms=60_000) == []
    assert groups(stream.reclaim("rank0", min_idle_ms=0, count=2)) == ["a", "b"]
    claimed = stream.reclaim_from("dead", "rank0")
    assert groups(claimed) == ["c", "d", "e"]
    assert stream.reclaim_from("dead", "rank0") == [] == stream.reclaim("rank0", min_idle_ms=0)
    assert groups(own) == ["f"] and stream.read("rank0", 9) == []
    assert (stream.pending_count("dead"), stream.pending_count("rank0")) == (0, 6)
    stream.settle(ids(claimed), "consumed:step=1")
    assert stream.audit().ok


def test_an_old_epoch_is_refused_to_publish_and_to_settle(open_stream: OpenStream) -> None:
    stream = open_stream()
    assert stream.epoch() == 0 and stream.begin_epoch() == 1 == stream.epoch()
    stream.publish(make_record("a", run_id=stream.run_id, epoch=1))
    (entry,) = stream.read("rank0", 1)
    assert open_stream().begin_epoch() == 2
    for epoch in (1, 3):  # 3: the store has lost its past
        with pytest.raises(StaleEpoch, match="not the current epoch 2"):
            stream.publish(make_record("b", run_id=stream.run_id, epoch=epoch))
    with pytest.raises(StaleEpoch):
        stream.settle([entry.entry_id], "consumed:step=1", epoch=1)
    assert stream.depth().entries == 1
    assert stream.settle([entry.entry_id], "consumed:step=1", epoch=2) == ["settled"]
    assert stream.audit().ok


def test_a_group_rolled_out_again_in_a_new_epoch_is_not_published_twice(open_stream: OpenStream) -> None:
    stream = open_stream()
    old = stream.publish(make_record("a", run_id=stream.run_id, epoch=0))
    epoch = stream.begin_epoch()
    again = stream.publish(make_record("a", run_id=stream.run_id, epoch=epoch, shape=(2, 3, 2, 8, 8)))
    assert again.repeated and again.entry_id == old.entry_id and stream.audit().ok


OLD_SCHEMA: Callable[[bytes], bytes] = lambda payload: with_metadata(payload, schema_version=b"0")  # noqa: E731


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (OLD_SCHEMA, "schema version 0, this RestoRL reads version 1"),
        (lambda payload: payload[: len(payload) // 2], "corrupt"),
        (lambda payload: b"\x80\x04." + payload, "corrupt"),
        (lambda payload: encode(make_record("other")), "names group 'other'"),
    ],
)
def test_an_unreadable_record_is_reported_and_the_stream_goes_on(
    open_stream: OpenStream, damage: Callable[[bytes], bytes], message: str
) -> None:
    stream = open_stream()
    publish(stream, "a")
    stream.publish_payload("bad", damage(encode(make_record("bad", run_id=stream.run_id))), rows=2, epoch=0)
    publish(stream, "c")
    good, bad, last = stream.read("rank0", 3)
    assert isinstance(bad.record, SchemaError) and message in str(bad.record) and "group 'bad'" in str(bad.record)
    assert isinstance(good.record, Trajectories) and isinstance(last.record, Trajectories)
    stream.settle([bad.entry_id], "dropped:schema")
    stream.settle([good.entry_id, last.entry_id], "consumed:step=1")
    report = stream.audit()
    assert report.ok and report.dropped == {"schema": 1} and report.consumed == 2


def test_a_record_of_another_run_is_refused(open_stream: OpenStream) -> None:
    with pytest.raises(SchemaError, match="is of run 'elsewhere'"):
        open_stream().publish(make_record(run_id="elsewhere"))


def test_an_entry_put_into_the_stream_by_others_is_reported(open_stream: OpenStream) -> None:
    stream = open_stream()
    stream.client.redis.xadd(stream.keys.entries, {"x": b"1", "n": b"many"})
    (entry,) = stream.read("rank0", 1)
    assert isinstance(entry.record, SchemaError)
    assert "never published" in stream.audit().problems[0]


def test_an_entry_deleted_by_hand_while_pending_does_not_stop_the_reader(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, "a", "b")
    first, _ = stream.read("rank0", 2)
    stream.client.redis.xdel(stream.keys.entries, first.entry_id)
    restarted = open_stream()
    assert groups(restarted.read("rank0", 2)) == ["b"]
    assert "group a" in restarted.audit().problems[0] and "vanished" in restarted.audit().problems[0]


@pytest.mark.parametrize("outcome", ["done", "consumed", "dropped:", "dropped:a\nb", "dropped:a\tb"])
def test_a_malformed_outcome_is_refused(open_stream: OpenStream, outcome: str) -> None:
    with pytest.raises(ValueError, match="consumed:... or dropped:REASON"):
        open_stream().settle(["1-1"], outcome)


def _publish_many(address: StoreAddress, run_id: str, first: int, count: int) -> None:
    torch.set_num_threads(1)  # OpenMP's threads don't survive a fork
    with TrajectoryStream(address, run_id) as stream:
        for n in range(first, first + count):
            stream.publish(make_record(f"g{n}", run_id=run_id, seed=n))


def test_two_publishing_processes_and_two_consumers_lose_and_repeat_nothing(
    open_stream: OpenStream,
) -> None:
    stream, seen = open_stream(), dict[str, list[str]]()
    fork = multiprocessing.get_context("fork")  # a new interpreter would import torch for seconds
    makers = [
        fork.Process(target=_publish_many, args=(stream.client.address, stream.run_id, first, 40)) for first in (0, 20)
    ]
    for maker in makers:
        maker.start()

    def consume(name: str) -> None:
        own, mine = open_stream(), seen.setdefault(name, [])
        deadline = time.monotonic() + 60
        while sum(map(len, seen.values())) < 60 and time.monotonic() < deadline:
            for entry in own.read(name, 3, block_ms=200):
                assert isinstance(entry.record, Trajectories)
                assert_same(entry.record, make_record(entry.group_id, run_id=own.run_id, seed=int(entry.group_id[1:])))
                own.settle([entry.entry_id], "consumed:step=1")
                mine.append(entry.group_id)

    consumers = [threading.Thread(target=consume, args=(name,)) for name in ("rank0", "rank1")]
    for thread in consumers:
        thread.start()
    for thread in consumers:
        thread.join()
    for maker in makers:
        maker.join(30)
    assert sorted(seen["rank0"] + seen["rank1"]) == sorted(f"g{n}" for n in range(60))  # 20 were published twice
    report = stream.audit()
    assert report.ok and report.consumed == 60 and report.pending == 0


def test_a_large_read_is_fetched_in_parts_and_complete(
    open_stream: OpenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trajectories.consumer.FETCH_BYTES", 2 * SIZE + 100)
    stream = open_stream()
    publish(stream, *"abcdefg")
    entries = stream.read("rank0", 7)
    assert all(isinstance(entry.record, Trajectories) for entry in entries) and groups(entries) == list("abcdefg")


def test_payloads_are_accepted_as_bytes_and_arrow_buffers(open_stream: OpenStream) -> None:
    stream = open_stream()
    for name, wrap in (("a", bytes), ("b", pa.py_buffer)):
        stream.publish_payload(name, wrap(encode(make_record(name, run_id=stream.run_id))), rows=2, epoch=0)
    assert all(isinstance(entry.record, Trajectories) for entry in stream.read("rank0", 2))
