"""The driver's calls of a store that goes away: repeated so often, ended by a signal."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.run import driver_stream
from cluster.run.driver_stream import DriverStream
from cluster.run.failures import Fatal, Patience
from cluster.run.interrupts import Asked, Interrupts
from tests.trajectories.records import make_record
from trajectories.errors import StoreUnready
from trajectories.server import EmbeddedServer
from trajectories.settings import StoreSettings
from trajectories.stream import TrajectoryStream

AWAY_S = 0.1  # that a call waits for the store by itself


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "store", StoreSettings(op_timeout_s=5)) as running:
        yield running


@pytest.fixture
def stream(own: EmbeddedServer) -> Iterator[DriverStream]:
    settings = replace(own.settings, reconnect_timeout_s=AWAY_S)
    with TrajectoryStream(own.address, "run", settings) as opened:
        made = DriverStream(opened, Interrupts())
        made.patience = Patience(made.patience.what, 20, pause_s=0.1, longest_s=0.1)
        yield made


def away(server: EmbeddedServer, seconds: float) -> threading.Thread:
    """The server ends, and is started again."""
    server._end_process()
    coming = threading.Timer(seconds, server.restart)
    coming.start()
    return coming


def test_each_call_goes_on_when_the_store_comes_back_after_its_own_retries(
    own: EmbeddedServer, stream: DriverStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_stream, "LONG_S", 0.15)
    epoch = stream.stream.begin_epoch()
    stream.stream.publish(make_record("a", epoch=epoch))
    assert stream.returned == 0.0
    for call, answer in (
        (lambda: set(stream.unsettled(epoch)), {"a"}),
        (stream.published_groups, {"a"}),
        (lambda: stream.depth().entries, 1),
        (lambda: stream.export_ledger(tmp_path / "ledger.json", epoch).published, 1),
    ):
        coming, began = away(own, 2.5 * AWAY_S), time.monotonic()
        assert call() == answer
        assert stream.returned > began + 2 * AWAY_S and stream.patience.in_a_row == 0
        coming.join()


def test_a_store_that_stays_away_ends_the_run_after_so_many_tries(own: EmbeddedServer, stream: DriverStream) -> None:
    url, stream.patience.limit = own.address.url, 3
    own.stop()
    began = time.monotonic()
    with pytest.raises(Fatal, match=f"calls of the store failed 4 times without progress.*{url} does not answer"):
        stream.depth()
    assert 4 * AWAY_S < time.monotonic() - began < 10


def test_a_first_signal_ends_the_wait_for_a_store_that_is_away(own: EmbeddedServer, stream: DriverStream) -> None:
    stream.patience = Patience("", 100)
    stream.stream.client.settings = replace(stream.stream.settings, reconnect_timeout_s=30.0)
    own.stop()
    threading.Timer(0.3, lambda: setattr(stream.interrupts, "requested", signal.SIGTERM)).start()
    began = time.monotonic()
    with pytest.raises(Asked):
        stream.depth()
    assert time.monotonic() - began < 10


def test_what_trying_again_will_not_change_ends_the_run_at_once(
    stream: DriverStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.patience = Patience("", 20, pause_s=1.0, longest_s=1.0)
    epoch = stream.stream.begin_epoch()
    stream.stream.begin_epoch()
    began = time.monotonic()
    with pytest.raises(Fatal, match="this process was replaced"):
        stream.unsettled(epoch)
    stream.stream.client.redis.flushall()
    with pytest.raises(Fatal, match="its store has nothing of it.*give the server its data back, or store.url"):
        stream.unsettled(2)
    assert time.monotonic() - began < 8


def test_an_answer_that_should_have_passed_is_tried_again_too_and_named_in_the_end(
    stream: DriverStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, stream.patience.limit = list[int](), 3

    def busy() -> None:
        asked.append(1)
        raise StoreUnready("store x answers 'BUSY' (counting) after 30.0 s: busy; end it with SCRIPT KILL")

    monkeypatch.setattr(stream.stream, "depth", busy)
    with pytest.raises(
        Fatal, match="failed 4 times.*answers 'BUSY'.*SCRIPT KILL; put it right, then go on with --resume$"
    ):
        stream.depth()
    assert len(asked) == 4
