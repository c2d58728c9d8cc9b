"""The rows: what dies, and what the fault and those who look after the hosts do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.network import NetworkError
from benchmarks.faults.scene import Scene, Setup
from benchmarks.faults.store import StoreSetup
from benchmarks.faults.verdict import FURTHER

AWAY_S = 30.0
HOUR_S = 3600
TROUBLE_S = 90.0
FURTHER_S = 240.0
RAYLET, GCS_SERVER = "/ray/raylet/raylet ", "/ray/gcs/gcs_server "  # of their command lines

Act = Callable[[Scene], str]
"""Does the fault, and what must be done for everything to be there again; says what that was, if anything."""


@dataclass(frozen=True)
class Row:
    """One line of the matrix.

    Attributes:
        name: for `--row`.
        dies: what does, in words.
        act: see `Act`.
        ends: the policy lets the run end; it is resumed then, after `mend`.
        mend: what has to be put right before that.
    """

    name: str
    dies: str
    act: Act
    setup: Setup = Setup()
    ends: bool = False
    mend: Act | None = None


def nothing(scene: Scene) -> str:
    return ""


def kill(host: str, name: str) -> Act:
    """kill -9 of one process."""

    def act(scene: Scene) -> str:
        scene.network.kill(host, name)
        return ""

    return act


def no_proxy(scene: Scene) -> str:
    """Serve runs without proxies: that is what is looked at."""
    for host in ("a", "b"):
        if found := scene.network.processes(host, "ray::ProxyActor"):
            scene.network.kill(host, "ray::ProxyActor")
            return f"a proxy was there and killed: {', '.join(found.values())}"
    return "none runs: replicas are reached by handles"


def kill_raylet(scene: Scene) -> str:
    scene.network.kill("b", RAYLET)
    return "its supervisor starts Ray on b again"


def kill_gcs(scene: Scene) -> str:
    scene.network.kill("a", GCS_SERVER)
    return "Ray on a ends with it, and its supervisor starts it again"


def kill_gcs_kept(scene: Scene) -> str:
    """The server alone, as Ray's documentation of fault tolerance has it: started again, it finds what it knew."""
    (pid, *_) = scene.network.processes("a", GCS_SERVER)
    command = [word.decode() for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if word]
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    os.kill(pid, signal.SIGKILL)
    time.sleep(3)
    scene.network.start("a", command, scene.folder / "gcs-again.log", environment)
    return "started again 3 s later by the same command"


def kill_driver(scene: Scene) -> str:
    scene.run.kill()
    return ""


def kill_store(scene: Scene) -> str:
    scene.store.kill()
    time.sleep(3)
    scene.store.start()
    return "started again 3 s later from its append-only file"


def restart_store(scene: Scene) -> str:
    scene.store.stop()
    time.sleep(AWAY_S / 2)
    scene.store.start()
    return f"away for {AWAY_S / 2:.0f} s, started again from its append-only file"


def kill_host(host: str) -> Act:
    def act(scene: Scene) -> str:
        count = scene.network.kill_all(host)
        time.sleep(5)
        scene.hosts.start(host)
        return f"{count} processes; 5 s later Ray starts there again"

    return act


def lose_power(scene: Scene) -> str:
    """Unlike killed processes, a host without power doesn't tell the others that its connections are gone."""
    scene.network.cut("b")
    scene.network.kill_all("b")
    time.sleep(2 * AWAY_S)
    scene.network.heal("b")
    scene.hosts.start("b")
    return f"{2 * AWAY_S:.0f} s later it is back, and Ray starts there again"


def cut(host: str) -> Act:
    def act(scene: Scene) -> str:
        scene.network.cut(host)
        time.sleep(AWAY_S)
        scene.network.heal(host)
        return f"healed after {AWAY_S:.0f} s"

    return act


def fill_disk(scene: Scene) -> str:
    filler = scene.store.fill()
    told = scene.store.wait_for_trouble(TROUBLE_S)
    time.sleep(10)
    filler.unlink()
    if scene.store.alive:
        return f"{told}; room is made 10 s later"
    scene.store.start()
    return f"{told}; room is made and it is started again 10 s later"


def fill_memory(scene: Scene) -> str:
    """A server that others have filled; the run finds its `maxmemory` reached."""
    _configured(scene, "maxmemory", "1mb")
    return "its `maxmemory` is reached"


def free_memory(scene: Scene) -> str:
    _configured(scene, "maxmemory", "0")
    return "raised before the resume"


def _configured(scene: Scene, name: str, value: str) -> None:
    if not (answer := scene.store.ask("CONFIG", "SET", name, value)).startswith("+OK"):
        raise NetworkError(f"the store does not take {name}={value}: {answer.strip() or 'no answer'}")


def jump(scene: Scene) -> str:
    """An hour forward, and from there two back."""
    reached, host = scene.run.iteration, scene.setup.clock
    moved = scene.network.mapping(host, scene.clock.library.name)
    if not moved:
        raise NetworkError(f"no process of host {host} has its clock from {scene.clock.library.name}")
    scene.clock.move(HOUR_S)
    scene.run.wait_for(reached + FURTHER, FURTHER_S)
    scene.clock.move(-HOUR_S)
    return f"an hour forward, and {FURTHER} iterations later two hours back, for {moved} processes"


ROWS = (
    Row("undisturbed", "nothing", nothing),
    Row("kill-actor", "the rollout actor (b)", kill("b", "ray::RolloutActor")),
    Row("kill-reward", "the reward replica (b)", kill("b", "ray::ServeReplica")),
    Row("kill-controller", "Ray Serve's controller (a)", kill("a", "ray::ServeController")),
    Row("kill-proxy", "Ray Serve's proxies", no_proxy),
    Row("kill-rank", "the learner's rank (a)", kill("a", "ray::RankProcess")),
    Row("kill-driver", "the driver (a)", kill_driver, ends=True),
    Row("kill-store", "the store (c)", kill_store),
    Row("kill-raylet", "the raylet of b, and with it all its workers", kill_raylet),
    Row("kill-gcs", "the GCS of the head (a), which keeps what it knows in memory", kill_gcs, ends=True),
    Row("kill-gcs-kept", "the GCS, with a Redis that keeps what it knows", kill_gcs_kept, Setup(gcs_redis=True)),
    Row("kill-host-b", "all processes of b: actor, replica, raylet", kill_host("b")),
    Row("kill-host-a", "all processes of a: head, driver, rank", kill_host("a"), ends=True),
    Row("lose-b", "host b without power", lose_power),
    Row("cut-b", "the link of b", cut("b")),
    Row("cut-store", "the link of the store (c)", cut("c")),
    Row("restart-store", "the store, in order (SIGTERM)", restart_store),
    Row("full-disk", "room on the store's disk, `appendfsync always`", fill_disk, Setup(StoreSetup(disk_mb=64))),
    Row(
        "full-disk-everysec",
        "room on the store's disk, `appendfsync everysec`",
        fill_disk,
        Setup(StoreSetup(disk_mb=64, fsync="everysec")),
    ),
    Row("full-memory", "room in the store's memory", fill_memory, ends=True, mend=free_memory),
    Row("clock-a", "the clock of a: head, driver, rank", jump, Setup(clock="a")),
    Row("clock-b", "the clock of b: actor, replica", jump, Setup(clock="b")),
    Row("clock-store", "the clock of the store (c)", jump, Setup(clock="c")),
    Row("tls", "the store, reached by TLS (`rediss://`)", kill_store, Setup(StoreSetup(tls=True))),
    Row("rights", "the store, by a user with least rights", kill_store, Setup(StoreSetup(least_rights=True))),
    Row("two-runs", "the driver of one of two runs on one cluster and store", kill_driver, Setup(runs=2), ends=True),
)
