"""The watch over the embedded store, without a server."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from cluster.run import topology
from cluster.run.topology import StoreWatch
from reward_service.settings import RewardSettings


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


def test_a_runs_own_service_is_for_pictures_of_its_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int | None] = []
    monkeypatch.setattr(topology, "deploy", lambda settings, app, given_up: sides.append(settings.picture_side))
    for crop, settings in ((384, RewardSettings()), (0, RewardSettings()), (384, RewardSettings(picture_side=64))):
        run = SimpleNamespace(config=SimpleNamespace(rollout=SimpleNamespace(crop=crop)), _app=lambda term: "reward-x")
        topology.Topology._serve(run, "lite0_levels", settings)  # type: ignore[arg-type]
    assert sides == [384, None, 64]
