"""Everything of a row, up and running: network, store, Ray on two hosts, runs. Gone on exit, whatever happened."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.hosts import Hosts
from benchmarks.faults.network import HOSTS, Network
from benchmarks.faults.packages import Clock, redis_server
from benchmarks.faults.recipe import write_workplace
from benchmarks.faults.runs import Run
from benchmarks.faults.store import Store, StoreSetup
from trajectories.server import server_binary

GCS_PORT = 6390
SHARED = ("model", "packages")  # folders that rows share; no row may be called so


@dataclass(frozen=True)
class Setup:
    """What a row needs besides the usual.

    Attributes:
        runs: on the one cluster and the one store.
        clock: the host whose clock can be moved; empty: none.
        gcs_redis: what Ray's head knows is kept in a server on c, too, and the head has no supervisor.
    """

    store: StoreSetup = StoreSetup()
    runs: int = 1
    clock: str = ""
    gcs_redis: bool = False


class Scene:
    """See the module. `work` keeps a folder for each row, which stays for whoever looks at its logs.

    Raises (on entry):
        NetworkError, StoreProblem, ClusterProblem, NoPackage.
    """

    def __init__(self, name: str, setup: Setup, work: Path) -> None:
        self.setup, self.work, self.folder = setup, work, work / name
        self._exits = ExitStack()

    def __enter__(self) -> Scene:
        try:
            self._build()
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @property
    def run(self) -> Run:
        """The one that the fault is for."""
        return self.runs[0]

    def _build(self) -> None:
        setup, shared = self.setup, self.work / SHARED[0]
        _forget(self.folder)
        self.folder.mkdir(parents=True)
        write_workplace(shared)
        more: dict[str, dict[str, str]] = {}
        if setup.clock:
            self.clock = Clock(self.work / SHARED[1], self.folder / "clock")
            more[setup.clock] = self.clock.environment
        binary, libraries = server_binary(), dict[str, str]()
        if setup.store.tls:
            binary, libraries = redis_server(self.work / SHARED[1])
        self.network = self._exits.enter_context(Network(self.folder))
        environment = {"PATH": os.environ.get("PATH", os.defpath), **libraries, **more.get("c", {})}
        self.store = self._exits.enter_context(
            Store(self.network, self.folder / "store", setup.store, binary, environment)
        )
        redis = None
        if setup.gcs_redis:
            plain = {"PATH": environment["PATH"]}
            known = Store(self.network, self.folder / "gcs", StoreSetup(), server_binary(), plain, GCS_PORT)
            self._exits.enter_context(known)
            redis = (f"{HOSTS['c']}:{GCS_PORT}", known.password)
        self.hosts = Hosts(self.network, self.folder, more, redis)
        self.hosts.start("a")
        self.hosts.start("b")
        self.hosts.wait_whole()
        self.runs: list[Run] = []
        for number in range(setup.runs):
            run = Run(self.hosts, shared, f"run{number + 1}", self.store.url, self.store.password)
            self.runs.append(self._exits.enter_context(run))


def _forget(folder: Path) -> None:
    """What an earlier try of the row has left."""
    for part in ("store", "gcs"):
        if os.path.ismount(folder / part):  # it was killed
            subprocess.run(["umount", "-l", str(folder / part)], check=True, timeout=30)
    if folder.exists():
        shutil.rmtree(folder)
