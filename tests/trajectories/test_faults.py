"""Server killed, connection cut, wrong password, no memory."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from tests.conftest import OpenStream
from tests.trajectories.proxy import CuttingProxy
from tests.trajectories.records import make_record
from tests.trajectories.test_stream import fetch, groups, ids, publish
from trajectories.errors import StoreAuthError, StoreError, StoreFull, StoreUnreachable
from trajectories.server import EmbeddedServer
from trajectories.settings import StoreAddress, StoreSettings
from trajectories.stream import TrajectoryStream


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[CuttingProxy]:
    relay = CuttingProxy(urlsplit(server.address.url).port or 0)
    yield relay
    relay.close()


@pytest.fixture
def through(proxy: CuttingProxy, server: EmbeddedServer, open_stream: OpenStream) -> TrajectoryStream:
    """A stream whose connections pass the proxy."""
    return open_stream(replace(server.address, url=f"redis://127.0.0.1:{proxy.port}"))


def kill(server: EmbeddedServer) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)


def test_a_publication_whose_answer_is_lost_is_not_doubled(proxy: CuttingProxy, through: TrajectoryStream) -> None:
    proxy.cut_when = lambda request: b"MULTI" in request
    publish(through, "a")
    assert proxy.cuts == 1 and through.depth().entries == 1
    assert through.audit().ok and through.audit().published == 1


def test_a_settlement_whose_answer_is_lost_is_not_counted_twice(proxy: CuttingProxy, through: TrajectoryStream) -> None:
    publish(through, "a")
    (entry,) = through.read("rank0", 1)
    proxy.cut_when = lambda request: b"consumed:step=1" in request
    assert through.settle([entry.entry_id], "consumed:step=1") == ["repeated"]
    assert proxy.cuts == 1 and through.audit().ok and through.audit().consumed == 1


def test_a_read_whose_answer_is_lost_gives_the_same_entries_in_order(
    proxy: CuttingProxy, through: TrajectoryStream
) -> None:
    publish(through, *"abcd")
    assert groups(through.read("rank0", 1)) == ["a"]
    proxy.cut_when = lambda request: b"XREADGROUP" in request
    assert groups(through.read("rank0", 2)) == ["b", "c"]
    assert proxy.cuts == 1 and groups(through.read("rank0", 2)) == ["d"]


@pytest.mark.parametrize("command", [b"STRLEN", b"GET\r\n"])
def test_a_fetch_whose_answer_is_lost_is_repeated(
    proxy: CuttingProxy, through: TrajectoryStream, command: bytes
) -> None:
    publish(through, *"abc")
    proxy.cut_when = lambda request: command in request
    assert [record.meta.group_id for record in fetch(through, *"cab")] == list("cab")
    assert proxy.cuts == 1


def test_entries_reclaimed_with_a_lost_answer_are_given_all_the_same(
    proxy: CuttingProxy, through: TrajectoryStream
) -> None:
    publish(through, *"abc")
    through.read("dead", 3)
    proxy.cut_when = lambda request: b"XCLAIM" in request
    assert groups(through.reclaim_others("rank0")) == ["a", "b", "c"]
    assert proxy.cuts == 1 and through.read("rank0", 9) == []


def test_entries_reclaimed_before_the_store_went_away_come_with_the_next_read(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trajectories.consumer.PAGE", 2)
    settings = replace(own_server.settings, reconnect_timeout_s=0.1)
    with TrajectoryStream(own_server.address, "run", settings) as stream:
        publish(stream, *"abcd")
        stream.read("dead", 4)
        stream.read("rank0", 1)  # has looked for entries of its own
        claim, pages = stream._deliveries._claim_page, list[object]()

        def die_after_one_page(*arguments: object) -> object:
            pages.append(arguments)
            if len(pages) == 2:
                kill(own_server)
                time.sleep(0.1)
            return claim(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(stream._deliveries, "_claim_page", die_after_one_page)
        with pytest.raises(StoreUnreachable):
            stream.reclaim_others("rank0")
        own_server.restart()
        assert groups(stream.read("rank0", 9)) == ["a", "b"]
        assert groups(stream.reclaim_others("rank0")) == ["c", "d"]


def test_a_killed_server_restarts_with_everything_it_had_confirmed(own_server: EmbeddedServer) -> None:
    with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
        epoch = stream.begin_epoch()
        for name in "abcde":
            stream.publish(make_record(name, epoch=epoch))
        batch = stream.read("rank0", 3)
        stream.settle(ids(batch[:1]), "consumed:step=1")
        before = stream.ledger()
        kill(own_server)
        time.sleep(0.05)
        assert not own_server.alive()
        own_server.restart()
        assert own_server.alive()
        assert stream.ledger() == before and stream.epoch() == epoch
        stream.settle(ids(batch[1:]), "consumed:step=2")
        assert groups(stream.read("rank0", 9)) == ["d", "e"]
        assert stream.publish(make_record("a", epoch=epoch)).repeated
        assert stream.audit().ok and stream.audit().consumed == 3


def test_work_goes_on_across_repeated_kills_and_nothing_is_lost_or_used_twice(own_server: EmbeddedServer) -> None:
    total, used, failures = 40, list[str](), list[BaseException]()

    def produce() -> None:
        with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
            for n in range(total):
                stream.publish(make_record(f"g{n}", shape=(4, 4, 4, 16, 16)))

    def consume() -> None:
        with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
            while len(used) < total:
                entries = stream.read("rank0", 4, block_ms=200)
                fetch(stream, *groups(entries))
                stream.settle(ids(entries), "consumed:step=1")
                used.extend(groups(entries))

    def guarded(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in (produce, consume)]
    for thread in threads:
        thread.start()
    for goal in (5, 15, 25):
        while len(used) < goal and not failures:
            time.sleep(0.002)
        kill(own_server)
        own_server.restart()
    for thread in threads:
        thread.join(40)
    assert not failures and sorted(used) == sorted(f"g{n}" for n in range(total))
    with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
        report = stream.audit()
    assert report.ok and (report.published, report.consumed, report.pending) == (total, total, 0)


def test_an_unreachable_store_is_reported_within_the_deadline_naming_the_address(server: EmbeddedServer) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        url = f"redis://127.0.0.1:{unused.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(StoreUnreachable, match=f"{url} does not answer .* is the server running"):
            TrajectoryStream(StoreAddress(url), "run", StoreSettings(reconnect_timeout_s=0.3))
        assert time.monotonic() - start < 3


def test_a_store_that_accepts_but_never_answers_is_reported_within_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(StoreUnreachable):
            TrajectoryStream(StoreAddress(url), "run", StoreSettings(op_timeout_s=0.3, reconnect_timeout_s=0.1))
        assert time.monotonic() - start < 3


@pytest.mark.parametrize("password", ["wrong", ""])
def test_wrong_and_missing_passwords_are_refused_at_once_without_showing_them(
    server: EmbeddedServer, password: str
) -> None:
    address = replace(server.address, password=password)
    start = time.monotonic()
    with pytest.raises(StoreAuthError, match="refused the credentials") as caught:
        TrajectoryStream(address, "run", StoreSettings(reconnect_timeout_s=30))
    assert time.monotonic() - start < 3
    assert server.address.password not in str(caught.value) and server.address.password not in repr(server.address)


def test_a_server_out_of_memory_is_reported_as_full_and_still_settles(own_server: EmbeddedServer) -> None:
    with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
        publish(stream, "a", "b")
        batch = stream.read("rank0", 2)
        stream.client.redis.config_set("maxmemory", 1_000_000)
        with pytest.raises(StoreFull, match="set store.embedded_maxmemory higher"):
            publish(stream, "c")
        assert stream.settle(ids(batch), "consumed:step=1") == ["settled", "settled"]
        stream.client.redis.config_set("maxmemory", 0)
        publish(stream, "c")
        assert groups(stream.read("rank0", 9)) == ["c"] and stream.audit().ok


def test_the_stream_at_its_bound_stays_below_the_memory_of_the_server(own_server: EmbeddedServer) -> None:
    settings = StoreSettings(max_bytes=16 << 20)
    own_folder = own_server.folder.with_name("bounded")
    with (
        EmbeddedServer(own_folder, replace(settings, embedded_maxmemory=84 << 20)) as server,
        TrajectoryStream(server.address, "run", settings) as stream,
    ):
        for n in range(32):
            record = make_record(f"g{n}", shape=(8, 4, 4, 32, 32), dtype="bfloat16")
            if stream.depth().nbytes + (1 << 20) > settings.max_bytes:
                stream.settle(ids(stream.read("rank0", 8)), "consumed:step=1")
            stream.publish(record, timeout_s=0)
        info = stream.client.redis.info("memory")
        assert info["used_memory_peak"] < 84 << 20 and info["maxmemory_policy"] == "noeviction"
        assert stream.audit().ok and stream.audit().published == 32


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("maxmemory-policy", "allkeys-lru", "may evict trajectories .* set it to noeviction"),
        ("maxmemory", str(100 << 20), "maxmemory 100 MiB, but store.max_bytes=.* needs"),
    ],
)
def test_a_server_that_could_evict_or_refuse_is_not_accepted(
    own_server: EmbeddedServer, option: str, value: str, message: str
) -> None:
    with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
        stream.client.redis.config_set(option, value)
    with pytest.raises(StoreError, match=message):
        TrajectoryStream(own_server.address, "run", own_server.settings)
