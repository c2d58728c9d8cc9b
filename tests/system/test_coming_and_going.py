"""A run whose nodes, actors and reward replicas come and go: it goes on with what there is, and uses all once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs import ClusterSettings, connect
from cluster.report.records import read_metrics
from cluster.report.run_audit import audit_run
from cluster.run.actor_pool import ActorPool
from cluster.run.failures import Failure
from cluster.run.folder import finished_after
from cluster.run.node_watch import NodeWatch
from cluster.run.wishes import Crew, crews
from reward_service.service import status
from reward_service.settings import reward_app_name
from tests.system.conftest import ROOT, Start, starter
from tests.system.light import make_light
from tests.system.ray_nodes import Cluster, lose, ray_head

pytestmark = pytest.mark.timeout(1500)
JOINS_S = 240.0  # seconds on a machine with nothing else to do: most of it is a process that imports torch
SOON_S = 120.0
# As many images as the actors have under way are too many for one replica.
REWARD = ("reward.terms=[]", "reward.scorer=tests.system.scorers:Slow", "reward.min_replicas=1")
REWARD += ("reward.max_replicas=3", "reward.ongoing_images=2", "reward.scale_up_s=2", "reward.scale_down_s=4")
ACTORS = ("actors.count=2", "actors.min=1", "actors.resources={actor: 1}", "ranks.resources={learner: 1}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ray_head(tmp_path_factory.mktemp("head"), learner=1.0) as running:
        yield running


@pytest.fixture
def start(workplace: Path, tmp_path: Path, cluster: Cluster) -> Iterator[Start]:
    where = [f"cluster.address={cluster.address}", "cluster.auth=disabled"]
    yield from starter(workplace, tmp_path, cluster.environment, where)


def restorl(cluster: Cluster, *words: object) -> str:
    command = [sys.executable, "-m", "cluster.cli", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=cluster.environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(reached: Callable[[], object], what: str, timeout_s: float) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() < began + timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - began


@pytest.mark.cluster
def test_actors_follow_their_nodes_and_nothing_waits_for_one_that_has_none(cluster: Cluster, tmp_path: Path) -> None:
    ended: list[tuple[str, Any]] = []
    enough = tmp_path / "enough"  # ends the calls of actors

    def turns(pool: ActorPool, reached: Callable[[], object], what: str, timeout_s: float) -> None:
        def turn() -> object:
            ended.extend(pool.take(ref) for ref in pool.finished(0.05))
            return reached()

        until(turn, what, timeout_s)

    first = cluster.add(1, actor=1)
    with connect(ClusterSettings(cluster.address, auth="disabled")), NodeWatch() as watch:
        pool = ActorPool(make_light, 1, 2, 600.0, lambda: watch.latest)
        pool.wait_ready(JOINS_S)
        pool.resize(2)
        second = cluster.add(1, actor=1)
        turns(pool, lambda: pool.standing().there == 2, "the second", JOINS_S)
        for actor in pool.free():
            pool.call(actor, "roll", f"of {actor}", f"of {actor}", enough)
        lose(second)
        turns(pool, lambda: len(pool.calls) == 2, "what the lost one had", SOON_S)
        (gone,) = {task for task, result in ended if isinstance(result, Failure)}
        assert len(ended) == 2 and not pool.free()
        enough.touch()
        turns(pool, lambda: not pool.calls, "what the other has", SOON_S)
        (done,) = {task for task, result in ended if result == task}
        assert {gone, done} == {"of 0", "of 1"} and len(ended) == 4
        lose(first)  # whose actor has nothing to do
        turns(pool, lambda: not pool.standing().there, "none is there", SOON_S)
        assert pool.free() == []
        third = cluster.add(1, actor=3)
        turns(pool, lambda: pool.standing().there == 2, "both", JOINS_S)
        pool.resize(4)
        turns(pool, lambda: pool.standing().there == 3, "as many as there is room for", JOINS_S)
        pool.resize(1)
        assert len(pool.members) == 1 and pool.standing().there == 1
        pool.kill()
    lose(third)


@pytest.mark.cluster
def test_a_run_goes_on_while_nodes_actors_and_replicas_come_and_go(
    start: Start, cluster: Cluster, workplace: Path
) -> None:
    took: dict[str, float] = {}
    first = cluster.add(1, actor=1)
    run = start("run", *ACTORS, *REWARD, "iterations=500", "source.max_staleness=1")
    run.wait_for_iteration(1)
    run_id = json.loads((run.folder / "run.json").read_text())["run_id"]
    with connect(ClusterSettings(cluster.address, auth="disabled")):

        def crew() -> Crew:
            return crews()[run_id]

        def replicas() -> int:
            return int(status(reward_app_name(run_id))["replicas"].get("RUNNING", 0))

        assert (crew().wanted, crew().there) == (2, 1)  # it has begun with the least
        second = cluster.add(1, actor=1)
        took["an added node is used"] = until(lambda: crew().there == 2, "a second actor", JOINS_S)
        took["replicas scaled up"] = until(lambda: replicas() > 1, "a second replica", JOINS_S)

        lose(second)
        took["a lost node is known"] = until(lambda: crew().there == 1, "one actor less", SOON_S)
        run.wait_for_iteration(run.iteration() + 2, JOINS_S)  # the one that is left does its work, too
        lose(first)
        until(lambda: crew().there == 0, "no actor left", SOON_S)
        took["replicas scaled down"] = until(lambda: replicas() == 1, "one replica again", JOINS_S)
        assert run.process.poll() is None, run.output()

        third, before = cluster.add(2, actor=3), run.iteration()
        took["all are back on one node"] = until(lambda: crew().there == 2, "both actors", JOINS_S)
        run.wait_for_iteration(before + 2, JOINS_S)
        told = restorl(cluster, "actors", "scale", 3, "--address", cluster.address)
        assert told == "actors: 3 in place of 2: 1 start\n"
        until(lambda: crew().there == 3, "a third actor", JOINS_S)
        told = restorl(cluster, "actors", "scale", 1, "--run", run.folder)
        assert told.startswith("actors: 1 in place of 3: ") and "end" in told
        until(lambda: (crew().wanted, crew().there, crew().leaving) == (1, 1, 0), "one actor", SOON_S)
        run.wait_for_iteration(run.iteration() + 1, JOINS_S)
        assert "of 2 actors are there; the others start, or wait for a place" in run.output()

        os.kill(run.process.pid, signal.SIGTERM)
        assert run.wait(120) == 143, run.output()
        until(lambda: run_id not in crews(), "no word of a run that has ended", SOON_S)

    done = len(read_metrics(run.folder, "train"))
    again = ["train", workplace / "recipe.yaml", *ACTORS, *REWARD, f"iterations={done + 1}", "source.max_staleness=1"]
    again += [f"cluster.address={cluster.address}", "cluster.auth=disabled", "--run", run.folder, "--resume-if-there"]
    restorl(cluster, *again)
    assert finished_after(run.folder) == done + 1
    assert "the run is complete" in restorl(cluster, *again)
    lose(third)

    report, _ = audit_run(run.folder)
    assert report.ok and report.pending == 0, report.render()
    assert report.consumed == (done + 1) * 4 and report.published == report.consumed + sum(report.dropped.values())
    assert [r["iteration"] for r in read_metrics(run.folder, "train")] == list(range(1, done + 2))
    assert json.loads((run.folder / "run.json").read_text())["dropped"] == {}  # nothing was taken for poison
    print({what: round(seconds, 1) for what, seconds in took.items()}, f"{done + 1} iterations")
