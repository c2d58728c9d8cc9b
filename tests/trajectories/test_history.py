"""The ledger is read in pages, and is that of one instant all the same."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.trajectories.test_stream import ids
from trajectories import history
from trajectories.audit import audit
from trajectories.errors import StoreError
from trajectories.server import EmbeddedServer
from trajectories.stream import TrajectoryStream

GROUPS, CONSUMED, STALE, READ = 100, 70, 10, 90


@pytest.fixture
def paged(own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> TrajectoryStream:
    """A stream with some history, whose hashes are scanned in many small pages."""
    monkeypatch.setattr(history, "PAGE", 4)
    config = EmbeddedServer._config
    own = "hash-max-listpack-entries 0\n"  # a small hash would come as one page
    faster = ("appendfsync always", "appendfsync no")  # no machine dies here
    monkeypatch.setattr(EmbeddedServer, "_config", lambda self: config(self).replace(*faster) + own)
    stream = TrajectoryStream(own_server.address, "run", own_server.settings)
    own_server.restart()
    for n in range(GROUPS):
        stream.publish_payload(f"g{n}", b"payload", b"summary", rows=2, epoch=0)
    read = stream.read("rank0", READ)
    stream.settle(ids(read[:CONSUMED]), "consumed:step=1")
    stream.settle(ids(read[CONSUMED : CONSUMED + STALE]), "dropped:stale")
    return stream


def between_calls(monkeypatch: pytest.MonkeyPatch, stream: TrajectoryStream, act: Callable[[int, str], None]) -> None:
    """Before each call of `stream`'s client: act(how many came before, what it is)."""
    call, made = stream.client.call, list[str]()

    def acting(what: str, exchange: Any, retry_s: float | None = None) -> Any:
        act(len(made), what)
        made.append(what)
        return call(what, exchange, retry_s)

    monkeypatch.setattr(stream.client, "call", acting)


def test_the_ledger_of_a_quiet_run_has_everything(paged: TrajectoryStream) -> None:
    report = paged.audit()
    assert report.ok and (report.published, report.consumed, report.pending) == (GROUPS, CONSUMED, 20)
    assert report.dropped == {"stale": STALE} and len(paged.published_groups()) == GROUPS
    owners = [entry.owner for entry in paged.ledger().entries]
    assert owners == [""] * 80 + ["rank0"] * 10 + [""] * 10


def test_what_is_published_read_and_settled_between_two_pages_leaves_no_fault_in_the_ledger(
    paged: TrajectoryStream, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TrajectoryStream(own_server.address, "run", own_server.settings) as other:
        published, settled = GROUPS, CONSUMED + STALE

        def go_on(number: int, what: str) -> None:
            nonlocal published, settled
            other.publish_payload(f"new{number}", b"payload", b"summary", rows=2, epoch=0)
            published += 1
            if number % 3:  # some of what waited, and what was published a moment ago
                settled += len(other.settle(ids(other.read("rank1", number % 3)), "consumed:step=2"))

        between_calls(monkeypatch, paged, go_on)
        for _ in range(2):
            before = published, settled
            report = audit(ledger := paged.ledger())
            assert report.ok, report.render()
            assert before[0] < report.published < published and before[1] < report.published - report.pending < settled
            assert ledger.held_bytes == sum(e.nbytes for e in ledger.entries if e.is_pending) > 0


def test_a_server_that_is_started_again_between_two_pages_costs_no_entry(
    paged: TrajectoryStream, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its hashes come in another order then, so that a cursor skips some."""
    before, calls, restarts = paged.ledger(), Counter[str](), list[str]()

    def restart(number: int, what: str) -> None:
        calls[what] += 1
        if calls[what] == 10 and what != "reading what is unsettled":
            assert own_server.pid is not None
            os.kill(own_server.pid, signal.SIGKILL)
            own_server.restart()
            restarts.append(what)

    between_calls(monkeypatch, paged, restart)
    assert paged.ledger() == before and paged.published_groups() == {e.group_id for e in before.entries}
    assert restarts == [
        *("reading what was settled", "reading what was published", "looking for records left behind"),
        "listing published groups",
    ]


def test_pages_that_miss_entries_are_read_again_and_refused_when_they_always_do(
    paged: TrajectoryStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, cuts = history._scan, [2]

    def lossy_scan(client: Any, key: str, what: str) -> list[tuple[str, str]]:
        found = scan(client, key, what)
        if what == "reading what was settled" or not cuts[0]:
            return found  # (what is missing of this is looked up)
        cuts[0] -= 1
        return found[1:]

    monkeypatch.setattr(history, "_scan", lossy_scan)
    assert paged.audit().ok and paged.audit().published == GROUPS
    cuts[0] = 2
    assert len(paged.published_groups()) == GROUPS
    cuts[0] = 100_000
    with pytest.raises(StoreError, match="could not be read whole in 5 tries"):
        paged.ledger()
    with pytest.raises(StoreError, match="99 of 100 published groups could be listed"):
        paged.published_groups()


def test_no_call_looks_at_more_of_a_long_history_than_a_page(
    paged: TrajectoryStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    between_calls(monkeypatch, paged, lambda number, what: calls.append(what))
    raw = paged.client.redis
    raw.config_resetstat()
    paged.ledger()
    stats: dict[str, Any] = raw.info("commandstats")  # type: ignore[assignment]
    assert "cmdstat_hgetall" not in stats and "cmdstat_keys" not in stats
    assert stats["cmdstat_hscan"]["calls"] > GROUPS / (4 * history.PAGE)
    for what in ("reading what was settled", "reading what was published"):
        assert calls.count(what) > GROUPS / (4 * history.PAGE), what
    assert calls.count("reading what is unsettled") == 1
