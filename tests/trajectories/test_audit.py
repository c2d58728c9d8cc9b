from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import OpenStream
from tests.trajectories.records import make_record
from tests.trajectories.test_stream import ids, publish
from trajectories.audit import Ledger, audit_file
from trajectories.errors import StaleEpoch, StoreError


def test_the_audit_counts_groups_and_trajectories_by_what_became_of_them(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, *"abcdefg")
    batch = ids(stream.read("rank0", 5))
    stream.settle(batch[:2], "consumed:step=1")
    stream.settle(batch[2:3], "dropped:stale")
    stream.settle(batch[3:4], "dropped:schema:version 0")
    report = stream.audit()
    assert report.ok and (report.published, report.consumed, report.pending) == (7, 2, 3)
    assert report.dropped == {"schema": 1, "stale": 1}
    assert (report.published_rows, report.consumed_rows, report.pending_rows) == (14, 4, 6)
    assert report.dropped_rows == {"schema": 2, "stale": 2}
    text = report.render()
    assert "consumed: 2 groups, 4 trajectories" in text and "stale: 1 groups" in text and "OK" in text


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        *(("dropped:reward_version", "reward_version"), ("dropped:picture:a.png: 3×3 px, crop needs 128", "picture")),
        *(("dropped:no reason at all", "no reason at all"), ("dropped:consumed", "consumed")),
    ],
)
def test_any_reason_is_counted_and_rendered(open_stream: OpenStream, outcome: str, reason: str) -> None:
    stream = open_stream()
    publish(stream, "a", "b", "c")
    batch = ids(stream.read("rank0", 2))
    stream.settle(batch[:1], outcome)
    stream.settle(batch[1:], "consumed:step=1")
    report = stream.audit()
    assert report.ok and report.dropped == {reason: 1} and report.dropped_rows == {reason: 2}
    assert (report.consumed, report.pending) == (1, 1)
    assert f"dropped: 1 groups, 2 trajectories\n  {reason}: 1 groups, 2 trajectories" in report.render()
    assert stream.ledger().entries[0].outcomes == (outcome,)


def test_a_process_that_was_replaced_does_not_overwrite_the_ledger_of_its_successor(
    open_stream: OpenStream, tmp_path: Path
) -> None:
    old, new = open_stream(), open_stream()
    first, second = old.begin_epoch(), new.begin_epoch()
    new.publish(make_record("a", run_id=new.run_id, epoch=second))
    new.export_ledger(tmp_path / "ledger.json", epoch=second)
    with pytest.raises(StaleEpoch, match="writing .*ledger.json: epoch 1 .* is not the current epoch 2"):
        old.export_ledger(tmp_path / "ledger.json", epoch=first)
    assert audit_file(tmp_path / "ledger.json").published == 1


def test_two_writers_of_one_ledger_never_leave_a_torn_file(open_stream: OpenStream, tmp_path: Path) -> None:
    stream, path = open_stream(), tmp_path / "ledger.json"
    publish(stream, *"abcdef")
    ledgers = [stream.ledger()]
    publish(stream, *(f"g{n}" for n in range(60)))
    ledgers.append(stream.ledger())
    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(lambda ledger=ledger: [ledger.write(path) for _ in range(60)]) for ledger in ledgers]
        while not all(writer.done() for writer in writers):
            assert not path.exists() or Ledger.read(path) in ledgers
        for writer in writers:
            writer.result()
    assert Ledger.read(path) in ledgers and os.listdir(tmp_path) == ["ledger.json"]


def test_consuming_a_group_twice_is_found_even_with_the_same_outcome(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, "a", "b")
    batch = ids(stream.read("rank0", 2))
    assert stream.settle(batch, "consumed:step=1") == ["settled", "settled"]
    assert stream.settle(batch[:1], "consumed:step=1") == ["twice"]
    report = stream.audit()
    assert report.problems == (f"group a (entry {batch[0]}): settled 2 times: consumed:step=1, consumed:step=1",)
    assert "FAIL: 1 problems" in report.render()


def test_a_settlement_repeated_with_its_token_counts_once(open_stream: OpenStream) -> None:
    stream = open_stream()
    publish(stream, "a", "b")
    batch = ids(stream.read("rank0", 2))
    stream.settle(batch[:1], "consumed:step=1", token="step=1")
    resumed = open_stream()
    assert resumed.settle(batch, "consumed:step=1", token="step=1") == ["repeated", "settled"]
    assert resumed.audit().ok and resumed.audit().consumed == 2


def test_settling_what_was_never_published_is_found(open_stream: OpenStream) -> None:
    stream = open_stream()
    assert stream.settle(["1-1"], "dropped:stale") == ["unknown"]
    assert stream.audit().problems == ("entry 1-1: settled as dropped:stale, but never published",)


def test_damage_done_to_the_store_by_hand_is_found(open_stream: OpenStream) -> None:
    stream = open_stream()
    names = ["vanished", "damaged", "held", "doubled"]
    entries = dict(zip(names, publish(stream, *names), strict=True))
    keys, redis = stream.keys, stream.client.redis
    redis.xdel(keys.entries, entries["vanished"])
    redis.set(keys.payload("damaged"), b"short")
    stream.settle([entries["held"]], "consumed:step=1")
    redis.set(keys.payload("held"), b"again")
    line = redis.hget(keys.published, entries["doubled"])
    redis.hset(keys.published, "1-1", line)
    problems = "\n".join(stream.audit().problems)
    for message in (
        *("group vanished .*: vanished", "group damaged .*: record of", "group held .* its record is still held"),
        *("group doubled: published 2 times", "the store counts"),
    ):
        assert re.search(message, problems), message


def test_an_exported_ledger_gives_the_same_audit_without_the_store(open_stream: OpenStream, tmp_path: Path) -> None:
    stream = open_stream()
    publish(stream, *"abc")
    batch = ids(stream.read("rank0", 2))
    stream.settle(batch[:1], "consumed:step=1")
    stream.settle(batch[:1], "consumed:step=2")
    stream.settle(["1-1"], "dropped:stale")
    report = stream.export_ledger(tmp_path / "ledger.json")
    assert len(report.problems) == 2 and audit_file(tmp_path / "ledger.json") == report == stream.audit()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 9}', '{"format": 1}', '{"format": 1, "entries": 3}'])
def test_an_unreadable_ledger_is_refused_naming_the_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "ledger.json").write_text(content)
    with pytest.raises(StoreError, match="ledger.json"):
        audit_file(tmp_path / "ledger.json")
    with pytest.raises(StoreError, match="missing.json"):
        audit_file(tmp_path / "missing.json")


def test_the_ledger_names_the_owner_of_each_pending_entry(open_stream: OpenStream, tmp_path: Path) -> None:
    stream = open_stream()
    publish(stream, "a", "b")
    stream.read("rank0", 1)
    stream.export_ledger(tmp_path / "ledger.json")
    owners = {e["group_id"]: e["owner"] for e in json.loads((tmp_path / "ledger.json").read_text())["entries"]}
    assert owners == {"a": "rank0", "b": ""}
    assert {group: len(entries) for group, entries in stream.ledger().groups().items()} == {"a": 1, "b": 1}
