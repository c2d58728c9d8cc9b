"""The watch over the embedded store, without a server; the start, without a cluster."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.recipe import ActorSettings, RunConfig
from cluster.run import topology
from cluster.run.actor_pool import Standing
from cluster.run.topology import Stalled, StoreWatch, Topology
from reward_service.errors import RewardUnavailable
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


def slow_deploy(settings: RewardSettings, name: str, given_up: threading.Event) -> Any:
    assert given_up.wait(20), "nobody gave the service up"
    raise RewardUnavailable(f"reward service {name!r} is not wanted any more")


@pytest.mark.parametrize("terms", [("",), ("sharp", "true")])
def test_a_learner_that_cannot_start_is_told_while_large_scorers_still_load(
    monkeypatch: pytest.MonkeyPatch, terms: tuple[str, ...]
) -> None:
    monkeypatch.setattr(topology, "deploy", slow_deploy)
    made: Any = Topology.__new__(Topology)
    made.run_id = "run"
    made.config = SimpleNamespace(
        reward=SimpleNamespace(services={term: RewardSettings() for term in terms}, terms=terms[0]),
        rollout=SimpleNamespace(crop=0),
    )
    learner = Future[None]()
    threading.Timer(0.1, learner.set_exception, (OSError("no such model"),)).start()
    with pytest.raises(OSError, match="no such model"):
        made._deploy_beside(learner)


def test_a_service_that_cannot_start_is_told_as_that_where_the_learner_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(settings: RewardSettings, name: str, given_up: threading.Event) -> Any:
        raise RewardUnavailable("no weights")

    monkeypatch.setattr(topology, "deploy", failing)
    made: Any = Topology.__new__(Topology)
    made.run_id = "run"
    made.config = SimpleNamespace(
        reward=SimpleNamespace(services={"": RewardSettings()}, terms=""), rollout=SimpleNamespace(crop=0)
    )
    with pytest.raises(RewardUnavailable, match="no weights"):
        made._deploy_beside(Future())


def test_a_runs_own_service_is_for_pictures_of_its_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    sides: list[int | None] = []
    monkeypatch.setattr(topology, "deploy", lambda settings, app, given_up: sides.append(settings.picture_side))
    for crop, settings in ((384, RewardSettings()), (0, RewardSettings()), (384, RewardSettings(picture_side=64))):
        run = SimpleNamespace(config=SimpleNamespace(rollout=SimpleNamespace(crop=crop)), _app=lambda term: "reward-x")
        topology.Topology._serve(run, "lite0_levels", settings, threading.Event())  # type: ignore[arg-type]
    assert sides == [384, None, 64]


def test_a_run_without_an_actor_waits_for_one_as_long_as_it_may_and_one_that_comes_counts_as_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topology, "TICK_S", 0.02)
    made: Any = Topology.__new__(Topology)
    made.config, made.event = SimpleNamespace(stall_timeout_s=60.0), time.monotonic() - 100
    made.stream = SimpleNamespace(returned=0.0)
    actors = SimpleNamespace(calls={}, joined=time.monotonic() - 30, standing=lambda: Standing(4, 0, 0))
    made.actors = actors
    actors.finished = lambda timeout_s: time.sleep(0.01) or []
    assert made.wait(None) == ([], False)
    actors.joined -= 40
    with pytest.raises(Stalled, match="for stall_timeout_s=60 s: 0 of 4 actors are there, 0 calls of theirs are out"):
        made.wait(None)


class Step:
    """Whatever a start enters; what is asked of it is noted."""

    def __init__(self, noted: list[str], name: str) -> None:
        self.noted, self.name = noted, name

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __getattr__(self, asked: str) -> Any:
        def note(*of: Any, **_: Any) -> Any:
            self.noted.append(
                f"{self.name}.{asked} {of[0]}" if of and isinstance(of[0], int) else f"{self.name}.{asked}"
            )
            return Future()

        return note


def test_what_a_run_cannot_begin_without_has_its_place_before_the_actors_that_may_come_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else they take that of ranks and replicas on a cluster which has room for `actors.min`."""
    noted: list[str] = []
    learner = Future[None]()
    learner.set_result(None)

    def pool(make: Any, count: int, *_: Any) -> Step:
        noted.append(f"{count} actors")
        return Step(noted, "actors")

    def learning(*_: Any) -> Any:
        return SimpleNamespace(begin=lambda resume: (noted.append("learner"), learner)[1], close=lambda: None)

    for name in ("RunMetrics", "NodeWatch", "Desk"):
        monkeypatch.setattr(topology, name, lambda *_: Step([], ""))
    monkeypatch.setattr(topology, "connect", lambda *_: Step([], ""))
    monkeypatch.setattr(topology, "fits_cluster", lambda *_, **__: ())
    monkeypatch.setattr(topology, "remote_actor", lambda options: SimpleNamespace(remote=print))
    monkeypatch.setattr(topology.ray, "nodes", lambda: [])
    for name in ("cluster_resources", "available_resources"):
        monkeypatch.setattr(topology.ray, name, lambda: {})
    monkeypatch.setattr(topology, "ActorPool", pool)
    monkeypatch.setattr(topology, "Learning", learning)
    made: Any = Topology.__new__(Topology)
    made.config = RunConfig(model=tmp_path, actors=ActorSettings(count=8, min=2))
    made.folder, made.run_id, made.resume, made.train, made.warnings = tmp_path, "run", False, None, ()
    made.exits, made._ends, made._deployed = ExitStack(), [], Future()
    made._open_store = made._actor_spec = lambda *_: None
    made._deploy_beside = lambda learner: noted.append("rewards") or {}
    made._start()
    assert noted == ["2 actors", "learner", "rewards", "actors.wait_ready", "actors.resize 8"]
