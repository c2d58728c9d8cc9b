"""The rights of docs/faults.md, tried at a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.faults.rights import COMMANDS, USER, rules
from tests.trajectories.records import make_record
from trajectories.errors import StoreAuthError
from trajectories.server import EmbeddedServer
from trajectories.settings import StoreAddress, StoreSettings
from trajectories.stream import TrajectoryStream


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """With a user who has these rights and no others."""
    with EmbeddedServer(tmp_path, StoreSettings(op_timeout_s=5)) as running:
        with redis.Redis.from_url(running.address.url_with_password) as admin:
            admin.execute_command("ACL", "SETUSER", USER, "reset", "on", ">secret", *rules())
            admin.config_resetstat()
        yield running


def use_everything(stream: TrajectoryStream, folder: Path) -> None:
    """All that actors, learner, driver and audit do with a stream."""
    epoch = stream.begin_epoch()
    stream.require_epoch(epoch)
    for name in ("a", "b", "c", "c"):
        stream.publish(make_record(name, run_id=stream.run_id, epoch=epoch))
    entries = stream.read("one", 2, epoch=epoch)
    entries += stream.read("one", 8, epoch=epoch)
    assert stream.read("one", 8, epoch=epoch) == [] == stream.read("one", 8, block_ms=20, epoch=epoch)
    assert len(stream.reclaim_others("two", epoch)) == 3 == stream.pending_count() == stream.depth().entries
    assert len(stream.fetch(["a"]) + stream.fetch(["b", "c"])) == 3
    ids = [entry.entry_id for entry in entries]
    assert stream.settle(ids[:2], "consumed:step=1", "step=1", epoch) == ["settled"] * 2
    assert list(stream.unsettled(epoch)) == ["c"] and stream.known(ids) == set(ids)
    assert stream.published_groups() == {"a", "b", "c"}
    assert stream.export_ledger(folder / "ledger.json").ok
    ledger = stream.ledger()
    stream.client.redis.unlink(*stream.keys.state)
    stream.client.call("creating the consumer group", stream._create_group)
    assert stream.restore(ledger.entries, epoch) == 2


def test_the_rights_are_enough_for_all_that_is_done_with_a_stream_and_each_is_used(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    address = StoreAddress(server.address.url, USER, "secret")
    with TrajectoryStream(address, "run", server.settings) as stream:
        use_everything(stream, tmp_path)
    with redis.Redis.from_url(server.address.url_with_password) as admin:
        counts: dict[str, Any] = admin.info("commandstats")  # type: ignore[assignment]
    used = {name.removeprefix("cmdstat_") for name, of in counts.items() if of["calls"]}
    assert set(COMMANDS) <= used, set(COMMANDS) - used


def test_the_user_reaches_neither_other_keys_nor_the_server_itself(server: EmbeddedServer) -> None:
    with redis.Redis.from_url(server.address.url, username=USER, password="secret") as client:
        for command in (("GET", "other"), ("CONFIG", "GET", "dir"), ("FLUSHALL",), ("ACL", "LIST"), ("KEYS", "*")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
    with pytest.raises(StoreAuthError):
        TrajectoryStream(StoreAddress(server.address.url, USER, "wrong"), "run", server.settings)
