from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
import torch

from tests.conftest import OpenStream
from tests.trajectories.records import assert_same, make_record
from tests.trajectories.test_schema import with_metadata
from trajectories import payloads
from trajectories.consumer import Entry
from trajectories.errors import BackPressureTimeout, RecordTooLarge, SchemaError, StaleEpoch, StoreLost
from trajectories.schema import SCHEMA_VERSION, Summary, Trajectories, encode, encode_summary
from trajectories.server import EmbeddedServer
from trajectories.settings import StoreAddress
from trajectories.stream import TrajectoryStream

SIZE = len(encode(make_record(run_id="run-00000000")))


def publish(stream: TrajectoryStream, *names: str) -> list[str]:
    return [stream.publish(make_record(name, run_id=stream.run_id), timeout_s=5).entry_id for name in names]


def groups(entries: list[Entry]) -> list[str]:
    return [entry.group_id for entry in entries]


def fetch(stream: TrajectoryStream, *names: str) -> list[Trajectories]:
    records = stream.fetch(names)
    assert all(isinstance(record, Trajectories) for record in records), records
    return records  # type: ignore[return-value]


def held(stream: TrajectoryStream) -> list[str]:
    """Keys of all records in the server, also of such as no entry knows of."""
    everything = stream.keys.payload_prefix.replace("payload:", "*")
    return sorted(
        key.decode().partition("}:")[2]
        for key in stream.client.redis.scan_iter(everything)
        if b"payload:" in key or b"arriving:" in key
    )


def ids(entries: list[Entry]) -> list[str]:
    return [entry.entry_id for entry in entries]


def test_a_published_record_is_read_as_it_was_and_settled_once(open_stream: OpenStream) -> None:
    stream = open_stream()
    record = make_record("g0", run_id=stream.run_id, dtype="bfloat16")
    receipt = stream.publish(record)
    (entry,) = stream.read("rank0", 8)
    assert isinstance(entry.summary, Summary)
    assert_same(entry.summary, record.summary())
    assert_same(*fetch(stream, "g0"), record)
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


@pytest.mark.parametrize("new_epoch", [False, True])
@pytest.mark.parametrize("settled", [False, True])
def test_publishing_a_group_again_changes_nothing(open_stream: OpenStream, settled: bool, new_epoch: bool) -> None:
    stream = open_stream()
    first = stream.publish(make_record("g0", run_id=stream.run_id, seed=1))
    (entry,) = stream.read("rank0", 8)
    if settled:
        stream.settle([entry.entry_id], "consumed:step=1")
    epoch = stream.begin_epoch() if new_epoch else 0
    before, keys = stream.depth(), held(stream)
    other = make_record("g0", run_id=stream.run_id, seed=2, epoch=epoch, shape=(2, 3, 2, 8, 8))
    again = stream.publish(other)
    assert (again.entry_id, first.repeated, again.repeated) == (first.entry_id, False, True)
    assert stream.depth() == before and held(stream) == keys == ([] if settled else ["payload:g0"])
    if settled:
        assert isinstance(stream.fetch(["g0"])[0], SchemaError)
    else:
        assert fetch(stream, "g0")[0].meta.seed == 1
    assert stream.settle([entry.entry_id], "consumed:step=1", token="again") == ["twice" if settled else "settled"]
    assert stream.depth().nbytes == 0 and stream.audit().ok is not settled


def test_a_group_whose_record_is_lost_is_not_given_another_one_by_a_repeated_publication(
    open_stream: OpenStream,
) -> None:
    stream = open_stream()
    publish(stream, "g0")
    stream.client.redis.delete(stream.keys.payload("g0"))  # the summary in the stream is of the first one
    assert stream.publish(make_record("g0", run_id=stream.run_id, seed=2)).repeated
    (record,) = stream.fetch(["g0"])
    assert isinstance(record, SchemaError) and held(stream) == []


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
    assert len(held(stream)) == 3


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


def test_entries_of_all_other_consumers_pass_to_the_one_that_reclaims_them(open_stream: OpenStream) -> None:
    dead, stream = open_stream(), open_stream()
    publish(dead, *"abcdef")
    dead.read("dead", 3)
    own = stream.read("rank0", 1)
    dead.read("another", 1)
    claimed = stream.reclaim_others("rank0")
    assert groups(claimed) == ["a", "b", "c", "e"] and groups(own) == ["d"]
    assert stream.reclaim_others("rank0") == [] and groups(stream.read("rank0", 9)) == ["f"]
    assert (stream.pending_count("dead"), stream.pending_count("another"), stream.pending_count("rank0")) == (0, 0, 6)
    stream.settle(ids(claimed), "consumed:step=1")
    assert stream.audit().ok


def test_reclaiming_goes_through_any_number_of_entries_in_bounded_pages(
    open_stream: OpenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trajectories.consumer.PAGE", 3)
    stream = open_stream()
    names = [f"g{n}" for n in range(11)]
    publish(stream, *names)
    for n in range(11):
        stream.read(f"old{n % 2}" if n < 7 else "rank0", 1)
    fresh = open_stream()
    assert groups(fresh.reclaim_others("rank0")) == names[:7]
    assert groups(fresh.read("rank0", 20)) == names[7:]


def test_an_entry_deleted_by_hand_does_not_stop_a_reclaim(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, "a", "b")
    first, _ = stream.read("old", 2)
    stream.client.redis.xdel(stream.keys.entries, first.entry_id)
    assert groups(open_stream().reclaim_others("rank0")) == ["b"]


def test_a_reader_that_was_replaced_takes_nothing_and_what_it_took_passes_to_its_successor(
    open_stream: OpenStream,
) -> None:
    old, new = open_stream(), open_stream()
    first = old.begin_epoch()
    for name in "abcd":
        old.publish(make_record(name, run_id=old.run_id, epoch=first))
    taken = old.read("learner-1", 2, epoch=first)
    second = new.begin_epoch()
    with pytest.raises(StaleEpoch, match="reading as 'learner-1': epoch 1 .* is not the current epoch 2"):
        old.read("learner-1", 2, epoch=first)
    late = old.read("learner-1", 1)  # of another release, without the fence: it takes, but nothing vanishes
    found = new.reclaim_others("learner-2", epoch=second) + new.read("learner-2", 9, epoch=second)
    assert groups(taken) == ["a", "b"] and groups(late) == ["c"] and groups(found) == ["a", "b", "c", "d"]
    for late_act in (
        lambda: old.settle(ids(taken), "consumed:step=1", epoch=first),
        lambda: old.reclaim_others("learner-1", epoch=first),
        lambda: old.publish(make_record("e", run_id=old.run_id, epoch=first)),
        lambda: old.read("learner-1", 2, block_ms=5000, epoch=first),
    ):
        with pytest.raises(StaleEpoch, match="must stop"):
            late_act()
    old.rewind("learner-1")
    assert old.read("learner-1", 9) == []  # its memory alone; nothing is its any more
    assert new.settle(ids(found), "consumed:step=1", epoch=second) == ["settled"] * 4
    assert new.audit().ok and new.audit().consumed == 4


def test_a_reader_replaced_while_it_waits_takes_nothing(open_stream: OpenStream) -> None:
    old, new = open_stream(op_timeout_s=1), open_stream()
    epoch, outcome = old.begin_epoch(), list[object]()

    def wait() -> None:
        try:
            outcome.append(old.read("learner-1", 1, block_ms=20_000, epoch=epoch))
        except StaleEpoch as error:
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.2)
    new.begin_epoch()
    new.publish(make_record("a", run_id=new.run_id, epoch=2))
    waiting.join(10)
    assert len(outcome) == 1 and isinstance(outcome[0], StaleEpoch)
    assert new.pending_count() == 0 and groups(new.read("learner-2", 1, epoch=2)) == ["a"]


def test_an_old_epoch_is_refused_to_publish_and_to_settle(open_stream: OpenStream) -> None:
    stream = open_stream()
    assert stream.epoch() == 0 and stream.begin_epoch() == 1 == stream.epoch()
    stream.publish(make_record("a", run_id=stream.run_id, epoch=1))
    (entry,) = stream.read("rank0", 1)
    assert open_stream().begin_epoch() == 2
    with pytest.raises(StaleEpoch, match="not the current epoch 2"):
        stream.publish(make_record("b", run_id=stream.run_id, epoch=1))
    with pytest.raises(StoreLost, match="is in epoch 3, but its store has an older state"):
        stream.publish(make_record("b", run_id=stream.run_id, epoch=3))
    with pytest.raises(StaleEpoch):
        stream.settle([entry.entry_id], "consumed:step=1", epoch=1)
    assert stream.depth().entries == 1
    assert stream.settle([entry.entry_id], "consumed:step=1", epoch=2) == ["settled"]
    assert stream.audit().ok


Damage = Callable[[bytes], bytes]
DAMAGES: list[tuple[Damage, str]] = [
    (
        lambda payload: with_metadata(payload, schema_version=b"1"),
        f"schema version 1, this RestoRL reads version {SCHEMA_VERSION}",
    ),
    (lambda payload: payload[: len(payload) // 2], "corrupt"),
    (lambda payload: b"\x80\x04." + payload, "corrupt"),
]


@pytest.mark.parametrize(
    ("damage", "message"), [*DAMAGES, (lambda _: encode_summary(make_record("other")), "names group 'other'")]
)
def test_an_unreadable_summary_is_reported_and_the_stream_goes_on(
    open_stream: OpenStream, damage: Damage, message: str
) -> None:
    stream = open_stream()
    publish(stream, "a")
    record = make_record("bad", run_id=stream.run_id)
    stream.publish_payload("bad", encode(record), damage(encode_summary(record)), rows=2, epoch=0)
    publish(stream, "c")
    good, bad, last = stream.read("rank0", 3)
    assert isinstance(bad.summary, SchemaError)
    assert message in str(bad.summary) and "group 'bad'" in str(bad.summary) and bad.entry_id in str(bad.summary)
    assert isinstance(good.summary, Summary) and isinstance(last.summary, Summary)
    stream.settle([bad.entry_id], "dropped:schema")
    stream.settle([good.entry_id, last.entry_id], "consumed:step=1")
    report = stream.audit()
    assert report.ok and report.dropped == {"schema": 1} and report.consumed == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *DAMAGES,
        (lambda _: encode(make_record("other", run_id="run")), "names group 'other' of run 'run'"),
        (lambda _: encode(make_record("bad", run_id="elsewhere")), "names group 'bad' of run 'elsewhere'"),
    ],
)
def test_an_unreadable_record_is_reported_in_its_place(open_stream: OpenStream, damage: Damage, message: str) -> None:
    stream = open_stream()
    publish(stream, "a", "c")
    record = make_record("bad", run_id=stream.run_id)
    stream.publish_payload("bad", damage(encode(record)), encode_summary(record), rows=2, epoch=0)
    first, bad, gone, last = stream.fetch(["c", "bad", "never published", "a"])
    assert isinstance(first, Trajectories) and first.meta.group_id == "c"
    assert isinstance(last, Trajectories) and last.meta.group_id == "a"
    assert isinstance(bad, SchemaError) and message in str(bad) and "group 'bad'" in str(bad)
    assert isinstance(gone, SchemaError) and "not in the store" in str(gone)


def test_a_settled_group_can_not_be_fetched(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, "a", "b")
    stream.settle(ids(stream.read("rank0", 1)), "consumed:step=1")
    gone, there = stream.fetch(["a", "b"])
    assert isinstance(gone, SchemaError) and "already settled" in str(gone) and isinstance(there, Trajectories)
    assert stream.fetch([]) == []


def test_records_are_fetched_by_a_second_thread_while_the_first_waits_for_entries(open_stream: OpenStream) -> None:
    stream, other, fetched = open_stream(), open_stream(), list[Trajectories]()
    publish(stream, *"ab")
    entries = stream.read("rank0", 2)

    def fetch_often() -> None:
        for _ in range(20):
            fetched.extend(fetch(stream, *groups(entries)))

    thread = threading.Thread(target=fetch_often)
    timer = threading.Timer(1.0, lambda: publish(other, "c"))
    thread.start()
    timer.start()
    assert groups(stream.read("rank0", 1, block_ms=10_000)) == ["c"]
    thread.join(20)
    timer.join()
    assert [record.meta.group_id for record in fetched] == ["a", "b"] * 20


def test_a_process_that_has_read_nothing_fetches_its_share(open_stream: OpenStream) -> None:
    reader, rank = open_stream(), open_stream()
    publish(reader, *"abcd")
    share = groups(reader.read("learner", 4))[1::2]
    assert [record.meta.group_id for record in fetch(rank, *share)] == ["b", "d"]
    assert rank.pending_count() == 4


def test_a_record_of_another_run_is_refused(open_stream: OpenStream) -> None:
    with pytest.raises(SchemaError, match="is of run 'elsewhere'"):
        open_stream().publish(make_record(run_id="elsewhere"))


def test_an_entry_put_into_the_stream_by_others_is_reported(open_stream: OpenStream) -> None:
    stream = open_stream()
    stream.client.redis.xadd(stream.keys.entries, {"x": b"1", "n": b"many"})
    (entry,) = stream.read("rank0", 1)
    assert isinstance(entry.summary, SchemaError)
    assert "fields 'n', 'x': it was not published by RestoRL" in str(entry.summary)
    assert "never published" in stream.audit().problems[0]


def test_an_entry_of_schema_version_1_is_refused_naming_both_versions(open_stream: OpenStream) -> None:
    stream = open_stream()
    stream.client.redis.xadd(stream.keys.entries, {"g": b"g0", "n": b"1000", "r": b"2"})  # as version 1 wrote it
    (entry,) = stream.read("rank0", 1)
    assert isinstance(entry.summary, SchemaError) and entry.group_id == "g0"
    assert f"schema version 1, this RestoRL reads version {SCHEMA_VERSION}: drop it" in str(entry.summary)


def test_the_account_of_unsettled_groups_counts_each_once_and_no_settled_one(
    open_stream: OpenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trajectories.stream.PAGE", 3)
    stream = open_stream()
    assert stream.unsettled() == {} and stream.published_groups() == set()
    names = [f"g{n}" for n in range(8)]
    entries = dict(zip(names, publish(stream, *names), strict=True))
    publish(stream, "g0", "g7")  # repeated
    batch = stream.read("rank0", 4)
    assert list(stream.unsettled().items()) == list(entries.items())  # read or not
    stream.settle(ids(batch[:1]), "consumed:step=1")
    stream.settle(ids(batch[1:2]), "dropped:stale")
    publish(stream, "g0")  # after its settlement
    stream.client.redis.xadd(stream.keys.entries, {"x": b"1"})
    assert stream.unsettled() == {name: entries[name] for name in names[2:]}
    assert stream.published_groups() == set(names)


def test_the_account_of_unsettled_groups_costs_the_same_however_long_the_run_is(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, "a", "b")

    def commands() -> int:
        before = stream.client.redis.info("stats")["total_net_output_bytes"]
        assert set(stream.unsettled()) == {"a", "b"}
        return int(stream.client.redis.info("stats")["total_net_output_bytes"] - before)

    short = commands()
    with stream.client.redis.pipeline() as pipe:  # a long history
        for n in range(5000):
            pipe.hset(stream.keys.groups, f"old{n}", f"{n}-1")
            pipe.hset(stream.keys.published, f"{n}-1", f"old{n}\t2\t100\t0")
            pipe.hset(stream.keys.settled, f"{n}-1", "t\tconsumed:step=1")
        pipe.execute()
    assert commands() < short + 500
    assert len(stream.published_groups()) == 5002


def test_an_entry_deleted_by_hand_while_pending_does_not_stop_the_reader(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, "a", "b")
    first, _ = stream.read("rank0", 2)
    stream.client.redis.xdel(stream.keys.entries, first.entry_id)
    restarted = open_stream()
    assert groups(restarted.read("rank0", 2)) == ["b"]
    assert "group a" in restarted.audit().problems[0] and "vanished" in restarted.audit().problems[0]


@pytest.mark.parametrize(
    "outcome", ["done", "consumed", "dropped:", "dropped: a", "dropped::a", "dropped:a\nb", "dropped:a\tb"]
)
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
                wanted = make_record(entry.group_id, run_id=own.run_id, seed=int(entry.group_id[1:]))
                assert_same(*fetch(own, entry.group_id), wanted)
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


def test_many_records_are_fetched_in_parts_of_bounded_bytes_and_complete(
    open_stream: OpenStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[int] = []
    pipelined = payloads._pipelined

    def counted(r: Any, command: str, names: Sequence[str]) -> list[Any]:
        parts.extend([len(names)] if command == "GET" else [])
        return pipelined(r, command, names)

    monkeypatch.setattr(payloads, "FETCH_BYTES", 2 * SIZE + 100)
    monkeypatch.setattr(payloads, "_pipelined", counted)
    stream = open_stream()
    publish(stream, *"abcdefg")
    assert [record.meta.group_id for record in fetch(stream, *"gfedcba")] == list("gfedcba")
    assert parts == [2, 2, 2, 1]


def test_reading_moves_no_payload(open_stream: OpenStream) -> None:
    stream = open_stream()
    record = make_record("a", run_id=stream.run_id, shape=(4, 4, 4, 32, 32))
    stream.publish(record)
    before = stream.client.redis.info("stats")["total_net_output_bytes"]
    (entry,) = stream.read("rank0", 8, block_ms=100)
    moved = stream.client.redis.info("stats")["total_net_output_bytes"] - before
    assert moved < 30_000 < entry.nbytes / 10  # INFO's own answer is in it


def test_payloads_are_accepted_as_bytes_and_arrow_buffers(open_stream: OpenStream) -> None:
    stream = open_stream()
    for name, wrap in (("a", bytes), ("b", pa.py_buffer)):
        record = make_record(name, run_id=stream.run_id)
        stream.publish_payload(name, wrap(encode(record)), wrap(encode_summary(record)), rows=2, epoch=0)
    assert all(isinstance(entry.summary, Summary) for entry in stream.read("rank0", 2)) and fetch(stream, "a", "b")


def test_the_servers_memory_is_told_and_a_user_who_may_not_ask_gets_none(
    open_stream: OpenStream, server: EmbeddedServer
) -> None:
    stream = open_stream()
    used, limit = stream.memory()
    assert used is not None and limit is not None and 0 < used < limit == server.settings.maxmemory
    stream.client.redis.acl_setuser(
        "plain", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"], commands=["-info"]
    )
    try:
        assert open_stream(StoreAddress(server.address.url, "plain", "secret")).memory() == (None, None)
    finally:
        stream.client.redis.acl_deluser("plain")
