"""What a server answers when it can't serve just then: tried again, and named when it does not pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from tests.trajectories.proxy import CuttingProxy
from tests.trajectories.records import make_record
from tests.trajectories.test_stream import ids, publish
from trajectories.client import PASSING
from trajectories.errors import StoreError, StoreFull, StoreUnready
from trajectories.server import EmbeddedServer
from trajectories.settings import LEDGER_BYTES, StoreSettings
from trajectories.stream import TrajectoryStream

# As Redis and Valkey write them.
ANSWERS = {
    "BUSY": "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "LOADING": "LOADING Redis is loading the dataset in memory",
    "READONLY": "READONLY You can't write against a read only replica. script: f1d2, on @user_script:1.",
    "MASTERDOWN": "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "UNBLOCKED": "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "NOREPLICAS": "NOREPLICAS Not enough good replicas to write.",
    "MISCONF": "MISCONF Errors writing to the AOF file: No space left on device",
    "TRYAGAIN": "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN": "CLUSTERDOWN Hash slot not served",
    "max number of clients": "ERR max number of clients reached",
    "Script killed by user": "ERR Error running script: Script killed by user with SCRIPT KILL...",
    "EXEC without MULTI": "ERR EXEC without MULTI",
}


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[CuttingProxy]:
    relay = CuttingProxy(urlsplit(server.address.url).port or 0)
    yield relay
    relay.close()


@contextmanager
def through(proxy: CuttingProxy, server: EmbeddedServer, run_id: str, **settings: Any) -> Iterator[TrajectoryStream]:
    address = replace(server.address, url=f"redis://127.0.0.1:{proxy.port}")
    with TrajectoryStream(address, run_id, StoreSettings(url=address.url, **settings)) as stream:
        yield stream


def answering(text: str, times: int) -> Callable[[bytes], bytes | None]:
    """The first `times` scripts get this error."""
    left = [times]

    def answer(request: bytes) -> bytes | None:
        if b"EVAL" not in request or not left[0]:
            return None
        left[0] -= 1
        return b"-" + text.encode() + b"\r\n"

    return answer


@pytest.mark.parametrize("name", PASSING)
def test_an_answer_that_passes_goes_unnoticed(
    proxy: CuttingProxy, server: EmbeddedServer, run_id: str, name: str
) -> None:
    with through(proxy, server, run_id) as stream:
        publish(stream, "a")
        (entry,) = stream.read("rank0", 1)
        proxy.answer_with = answering(ANSWERS[name], times=2)
        assert stream.settle(ids([entry]), "consumed:step=1") == ["settled"]
        assert stream.audit().ok and stream.audit().consumed == 1


@pytest.mark.parametrize("name", PASSING)
def test_an_answer_that_does_not_pass_is_named_with_what_to_do(
    proxy: CuttingProxy, server: EmbeddedServer, run_id: str, name: str
) -> None:
    with through(proxy, server, run_id, reconnect_timeout_s=0.1) as stream:
        proxy.answer_with = answering(ANSWERS[name], times=1000)
        with pytest.raises(StoreUnready) as caught:
            stream.settle(["1-1"], "consumed:step=1")
        said = str(caught.value)
        assert f"answers '{name}' (settle)" in said and PASSING[name] in said
        assert ANSWERS[name].split(" ", 1)[1][:30] in said  # the server's own words


def test_after_a_failover_the_address_is_looked_up_again(
    proxy: CuttingProxy, server: EmbeddedServer, run_id: str
) -> None:
    """A connection stays with the server that it once reached, though the name is another's by then."""
    with through(proxy, server, run_id, reconnect_timeout_s=2.0) as stream:
        publish(stream, "a")
        readonly, before = answering(ANSWERS["READONLY"], times=1000), proxy.accepted
        proxy.answer_with = lambda request: readonly(request) if proxy.accepted == before else None
        assert stream.unsettled().keys() == {"a"}


@pytest.mark.parametrize("text", ["ERR unknown command", "WRONGTYPE not the right kind", "NOPERM no permissions"])
def test_an_answer_that_will_not_pass_is_given_at_once(
    proxy: CuttingProxy, server: EmbeddedServer, run_id: str, text: str
) -> None:
    with through(proxy, server, run_id) as stream:
        proxy.answer_with, began = answering(text, times=1000), time.monotonic()
        with pytest.raises(StoreError, match="failed at settle") as caught:
            stream.settle(["1-1"], "consumed:step=1")
        assert not isinstance(caught.value, StoreUnready) and time.monotonic() - began < 1


def end(killer: redis.Redis) -> None:
    """The script, once it runs."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            killer.script_kill()
            return
        except redis.ResponseError:
            time.sleep(0.02)


@contextmanager
def busy(server: EmbeddedServer, seconds: float) -> Iterator[None]:
    """A script of another program holds the server, until it is killed."""
    with (
        redis.Redis.from_url(server.address.url_with_password) as killer,
        redis.Redis.from_url(server.address.url_with_password, socket_timeout=30) as other,
    ):
        killer.config_set("busy-reply-threshold", 20)

        def hold() -> None:
            with pytest.raises(redis.ResponseError, match="killed"):
                other.eval("while true do end", 0)

        holding = threading.Thread(target=hold)
        holding.start()
        time.sleep(0.1)
        ending = threading.Timer(seconds, end, [killer])
        ending.start()
        yield
        ending.join()
        holding.join()


def test_all_operations_go_on_behind_a_long_script_of_another_program(own_server: EmbeddedServer) -> None:
    with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
        publish(stream, "a")
        with busy(own_server, seconds=0.15):
            publish(stream, "b")  # a transaction
        with busy(own_server, seconds=0.15):
            assert stream.depth().entries == 2
        with busy(own_server, seconds=0.15):
            assert stream.settle(ids(stream.read("rank0", 9)), "consumed:step=1") == ["settled"] * 2
        assert stream.audit().ok and stream.audit().consumed == 2


def test_a_primary_that_is_a_replica_for_a_while_is_waited_for(own_server: EmbeddedServer) -> None:
    with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
        publish(stream, "a")
        with redis.Redis.from_url(own_server.address.url_with_password) as admin:
            for stale in ("yes", "no"):  # READONLY, and MASTERDOWN
                admin.config_set("replica-serve-stale-data", stale)
                admin.execute_command("REPLICAOF", "127.0.0.1", 1)
                threading.Timer(0.2, lambda: admin.execute_command("REPLICAOF", "NO", "ONE")).start()
                publish(stream, f"b{stale}")
        assert stream.depth().entries == 3 and stream.audit().ok


def test_a_server_with_too_many_clients_is_waited_for(own_server: EmbeddedServer) -> None:
    with redis.Redis.from_url(own_server.address.url_with_password) as admin:
        admin.config_set("maxclients", 1)
        threading.Timer(0.2, lambda: admin.config_set("maxclients", 100)).start()
        with TrajectoryStream(own_server.address, "run", own_server.settings) as stream:
            publish(stream, "a")


def test_closing_a_stream_ends_what_another_thread_still_tries(own_server: EmbeddedServer) -> None:
    stream, ended = TrajectoryStream(own_server.address, "run", StoreSettings()), list[BaseException]()

    def ask() -> None:
        try:
            stream.depth()
        except BaseException as error:
            ended.append(error)

    own_server.stop()
    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    stream.close()
    asking.join(3)
    assert not asking.is_alive() and isinstance(ended[0], StoreError)


@pytest.mark.parametrize("embedded", [True, False])
def test_a_full_store_says_which_limit_it_met_and_which_setting_raises_it(
    own_server: EmbeddedServer, embedded: bool
) -> None:
    settings = replace(own_server.settings, url="embedded" if embedded else own_server.address.url)
    with TrajectoryStream(own_server.address, "run", settings) as stream:
        stream.client.redis.config_set("maxmemory", 1_000_000)
        with pytest.raises(StoreFull) as caught:
            publish(stream, "a")
        said = str(caught.value)
        if embedded:
            assert f"its limit is {settings.maxmemory} bytes: set store.embedded_maxmemory higher" in said
        else:
            assert "raise its maxmemory" in said and "embedded" not in said
        assert f"ledger of the run's groups is in it, too, about {LEDGER_BYTES} bytes a group" in said


def test_the_ledger_takes_no_more_of_the_server_than_is_planned_for_it(own_server: EmbeddedServer) -> None:
    with TrajectoryStream(own_server.address, "a-name-of-usual-length-0a1b2c3d", own_server.settings) as stream:
        raw, keys, groups = stream.client.redis, stream.keys, 600
        raw.config_set("appendfsync", "no")
        epoch = stream.begin_epoch()
        for start in range(0, groups, 100):
            names = [f"{n:08d}-000" for n in range(start, start + 100)]
            for name in names:
                stream.publish_payload(name, b"p" * 10, b"s", 8, epoch)
            stream.settle(ids(stream.read("rank0", 100)), "consumed:step=1000", token="step=1000")
        ledger = (keys.groups, keys.published, keys.settled, keys.entries)
        taken = sum(int(raw.memory_usage(key, samples=0)) for key in ledger)
    assert taken / groups < LEDGER_BYTES < 3 * taken / groups


def test_the_limit_of_an_embedded_store_grows_with_the_history_of_a_run_unless_it_was_given() -> None:
    derived = StoreSettings(max_bytes=1 << 20)
    assert derived.with_ledger_of(1_000_000).maxmemory == derived.maxmemory + 1_000_000 * LEDGER_BYTES
    given = replace(derived, embedded_maxmemory=1 << 30)
    assert given.with_ledger_of(1_000_000) == given


def test_a_record_is_published_once_though_its_transaction_was_refused_halfway(
    proxy: CuttingProxy, server: EmbeddedServer, run_id: str
) -> None:
    """A server that is busy at MULTI and free again at the record, which comes in later pieces."""
    with through(proxy, server, run_id) as stream:
        refused: list[bytes] = []

        def only_multi(request: bytes) -> bytes | None:
            if b"MULTI" not in request or refused:
                return None
            refused.append(request)
            return (
                b"-BUSY Redis is busy\r\n"
                + b"+OK\r\n"
                + b"*2\r\n$5\r\nknown\r\n$3\r\n1-1\r\n-ERR EXEC without MULTI\r\n"
            )

        proxy.answer_with = only_multi
        receipt = stream.publish(make_record("a", run_id=stream.run_id))
        assert refused and receipt.entry_id != "1-1" and stream.audit().published == 1
