from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from cluster.config.configure import ConfigError
from cluster.deploy.store_server import StoreServer

PASSWORD = 'a "quoted" word\\ of 24'
ROOT = Path(__file__).parents[3]


@dataclass
class Served:
    folder: Path
    port: int
    process: subprocess.Popen[str]

    def client(self, password: str = PASSWORD) -> redis.Redis:
        return redis.Redis(port=self.port, password=password, socket_timeout=10)

    def wait(self) -> Served:
        ends = time.monotonic() + 60
        while True:
            try:
                self.client().ping()
                return self
            except redis.ConnectionError:
                assert self.process.poll() is None and time.monotonic() < ends, self.process.communicate()
                time.sleep(0.05)


def serve(folder: Path, port: int, password: str = PASSWORD) -> Served:
    words = ["deploy", "store", str(folder), "--port", str(port), "--host", "127.0.0.1", "--memory-mib", "64"]
    environment = {**os.environ, "STORE_PASSWORD": password}
    command = [sys.executable, "-m", "cluster.cli", *words]
    pipe = subprocess.PIPE
    return Served(
        folder, port, subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe)
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = serve(tmp_path_factory.mktemp("store") / "data", port)
    try:
        yield found.wait()
    finally:
        found.process.kill()
        found.process.wait(20)


def test_it_asks_for_the_password_which_no_list_of_processes_shows(served: Served) -> None:
    for wrong in ("", "another word that is wrong"):
        with pytest.raises(redis.AuthenticationError):
            served.client(wrong).ping()
    shown = Path(f"/proc/{served.process.pid}/cmdline").read_text()
    assert "valkey-server" in shown and "quoted" not in shown
    assert (served.folder / "valkey.conf").stat().st_mode & 0o077 == 0
    assert served.folder.stat().st_mode & 0o077 == 0  # nor does anybody else read its file


def test_a_second_one_on_the_same_file_is_refused_in_one_line(served: Served) -> None:
    other = serve(served.folder, served.port + 1).process
    _, told = other.communicate(timeout=60)
    assert other.returncode == 2
    assert told.strip().splitlines() == [
        f"{served.folder}: another store runs there; stop it first, or give another folder"
    ]


def test_what_it_has_answered_is_there_after_a_kill(served: Served) -> None:
    client = served.client()
    assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    assert int(client.config_get("maxmemory")["maxmemory"]) == 64 << 20
    client.xadd("stream", {"a": "1"})
    served.process.send_signal(signal.SIGKILL)
    served.process.wait(20)
    served.process = serve(served.folder, served.port).process
    assert served.wait().client().xlen("stream") == 1


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"port": 0}, "--port 0: a number from 1 to 65535"),
        ({"memory_mib": 1}, "--memory-mib 1: at least 64"),
        ({"password": "short"}, "needs 16 characters of ASCII"),
        ({"password": "x" * 16 + "\n"}, "needs 16 characters of ASCII"),
        ({"password": "é" * 16}, "needs 16 characters of ASCII"),
    ],
)
def test_what_can_not_be_served_is_told(changed: dict[str, object], told: str) -> None:
    given: dict[str, object] = {"host": "127.0.0.1", "port": 1, "memory_mib": 64, "password": "x" * 16, **changed}
    with pytest.raises(ConfigError, match=told):
        StoreServer(**given)  # type: ignore[arg-type]


def test_a_password_is_in_no_message() -> None:
    assert "secret" not in repr(StoreServer("h", 1, 64, "secret" * 4))
