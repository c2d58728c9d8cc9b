"""A Ray cluster of several nodes on this machine, each a family of processes that a test may end at any time."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.system.conftest import ROOT

RAY = str(Path(sys.executable).with_name("ray"))
ENV = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "120000"}
HERE = "--node-ip-address=127.0.0.1"


@dataclass
class Cluster:
    address: str
    dashboard: str
    environment: dict[str, str]
    logs: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, cpus: int, **resources: float) -> subprocess.Popen[bytes]:
        """Another node, which joins in seconds."""
        command = [RAY, "start", f"--address={self.address}", f"--num-cpus={cpus}", HERE, "--block"]
        command += [f"--resources={json.dumps(resources)}", "--object-store-memory=100000000"]
        command += ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
        with (self.logs / f"node{len(self.nodes)}").open("wb") as output:
            node = subprocess.Popen(command, stdout=output, stderr=output, env=self.environment, cwd=ROOT)
        self.nodes.append(node)
        return node


def lose(node: subprocess.Popen[bytes]) -> None:
    """All its processes at once, as when the machine is taken away."""
    try:
        family = psutil.Process(node.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for process in [*family, node]:
        try:
            process.kill()
        except psutil.Error:
            continue
    node.wait(30)


@contextmanager
def ray_head(folder: Path, cpus: int = 4, **resources: float) -> Iterator[Cluster]:
    """A cluster of one node, without a token."""
    log = folder / "log"
    # Its own temporary folder: a head that is killed leaves its address there, which others would join.
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = {**os.environ, **ENV, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": temporary}
    environment.pop("RAY_ADDRESS", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [RAY, "start", "--head", "--port=0", f"--num-cpus={cpus}", f"--dashboard-port={port}", "--block"]
    command += ["--object-store-memory=400000000", HERE, f"--resources={json.dumps(resources)}"]
    with log.open("wb") as output:
        head = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    cluster: Cluster | None = None
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"--address='?([\d.]+:\d+)", log.read_text())):
            assert head.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        cluster = Cluster(found[1], f"127.0.0.1:{port}", environment, folder)
        yield cluster
    finally:
        for node in [*(cluster.nodes if cluster else []), head]:
            lose(node)
        shutil.rmtree(temporary, ignore_errors=True)
