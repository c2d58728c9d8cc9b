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

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
ENV = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "120000"}
HERE = "--node-ip-address=127.0.0.1"
TRIES = 5


@dataclass
class Cluster:
    address: str
    dashboard: str
    environment: dict[str, str]
    logs: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, cpus: int, **resources: float) -> subprocess.Popen[bytes]:
        """Another node; returns when it has joined."""
        command = [RAY, "start", f"--address={self.address}", f"--num-cpus={cpus}", HERE, "--block"]
        command += [f"--resources={json.dumps(resources)}", "--object-store-memory=100000000"]
        command += ["--dashboard-agent-listen-port=0", "--min-worker-port=0", "--max-worker-port=0"]
        node, _ = started(command, self.logs / f"node{len(self.nodes)}", self.environment)
        self.nodes.append(node)
        return node


def started(command: list[str], log: Path, environment: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """`ray start`, and what it said. It gives itself 30 s, which a busy machine may not have: `TRIES` tries."""
    for _ in range(TRIES):
        with log.open("wb") as output:
            node = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        deadline = time.monotonic() + 120
        while node.poll() is None and time.monotonic() < deadline:
            if "Ray runtime started" in (told := log.read_text()):
                return node, told
            time.sleep(0.2)
        lose(node)
    raise AssertionError(log.read_text())


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
    # Its own temporary folder: a head that is killed leaves its address there, which others would join.
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = {**os.environ, **ENV, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": temporary}
    environment.pop("RAY_ADDRESS", None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [RAY, "start", "--head", "--port=0", f"--num-cpus={cpus}", f"--dashboard-port={port}", "--block"]
    command += ["--object-store-memory=400000000", HERE, f"--resources={json.dumps(resources)}"]
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        head, told = started(command, folder / "log", environment)
        nodes.append(head)
        found = re.search(r"--address='?([\d.]+:\d+)", told)
        assert found, told
        yield Cluster(found[1], f"127.0.0.1:{port}", environment, folder, nodes)
    finally:
        for node in reversed(nodes):
            lose(node)
        shutil.rmtree(temporary, ignore_errors=True)
