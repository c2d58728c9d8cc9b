"""The watch over the embedded store, without a server."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from cluster.run import topology
from cluster.run.topology import StoreWatch


def test_a_restart_that_a_full_disk_refuses_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "WATCH_S", 0.01)
    tries: list[int] = []

    def restart() -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise OSError(28, "No space left on device")

    server = SimpleNamespace(alive=lambda: len(tries) >= 3, restart=restart)
    with StoreWatch(server):  # type: ignore[arg-type]
        ends = time.monotonic() + 10
        while len(tries) < 3 and time.monotonic() < ends:
            time.sleep(0.01)
    assert len(tries) == 3
