"""The trajectory store of a row: a Valkey (for TLS a Redis) server on host c, with append-only file and password."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.network import HOSTS, Network
from benchmarks.faults.rights import USER, acl_line

PORT = 6379
READY_S = 60.0
ASK_S = 20.0
# A client of a few lines, which runs on the store's host: an interpreter without site-packages starts in no time.
CLIENT = """
import socket, ssl, sys
host, port, authority = sys.argv[1], int(sys.argv[2]), sys.argv[3]
link = socket.create_connection((host, port), timeout=10)
if authority:
    link = ssl.create_default_context(cafile=authority).wrap_socket(link, server_hostname=host)
link.sendall(sys.stdin.buffer.read() + b"QUIT\\r\\n")
while piece := link.recv(65536):
    sys.stdout.buffer.write(piece)
"""


class StoreProblem(RuntimeError):
    """The server of a row doesn't do what the row needs."""


@dataclass(frozen=True)
class StoreSetup:
    """How the server of a row is run.

    Attributes:
        tls: only by TLS, with a certificate made on the spot (a server that has it, see `packages.py`).
        least_rights: the run is a user with the rights of `rights.py` only.
        fsync: of the append-only file.
        disk_mb: its folder is a file system of so many MiB; 0: a folder like any other.
    """

    tls: bool = False
    least_rights: bool = False
    fsync: str = "always"
    disk_mb: int = 0


class Store:
    """The server, started on entry and killed on exit.

    Attributes:
        password: of the user that the run is; the administrator has another.
    """

    def __init__(
        self,
        network: Network,
        folder: Path,
        setup: StoreSetup,
        binary: Path,
        environment: Mapping[str, str],
        port: int = PORT,
    ) -> None:
        self.network, self.folder, self.setup, self.port = network, folder, setup, port
        self.binary, self.environment = binary, dict(environment)
        self.admin = secrets.token_urlsafe(24)
        self.password = secrets.token_urlsafe(24) if setup.least_rights else self.admin
        self.process: subprocess.Popen[bytes] | None = None
        self._exits = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """For `store.url`, without a password."""
        user = f"{USER}@" if self.setup.least_rights else ""
        if self.setup.tls:
            return f"rediss://{user}{HOSTS['c']}:{self.port}?ssl_ca_certs={self._authority}"
        return f"redis://{user}{HOSTS['c']}:{self.port}"

    def __enter__(self) -> Store:
        self.folder.mkdir(parents=True)
        try:
            if self.setup.disk_mb:
                size = f"size={self.setup.disk_mb}m"
                subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.folder)], check=True, timeout=30)
                self._exits.callback(subprocess.run, ["umount", "-l", str(self.folder)], timeout=30)
            if self.setup.tls:
                _certificates(self.folder, HOSTS["c"])
            config = self.folder / "server.conf"
            config.touch(mode=0o600)
            config.write_text("\n".join(self._config()) + "\n")
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._exits.close()

    def start(self) -> None:
        """Start it on what its folder holds, and wait until it answers.

        Raises:
            StoreProblem: it doesn't.
        """
        command = [str(self.binary), "./server.conf"]
        log = self.folder.with_name(f"{self.folder.name}.log")  # not where the disk may be full
        self.process = self.network.start("c", command, log, self.environment, cwd=self.folder)
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if "PONG" in self.ask("PING"):
                return
            time.sleep(0.1)
        raise StoreProblem(f"the store does not start: {log.read_text(errors='replace')[-2000:]}")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(30)

    def stop(self) -> None:
        """SIGTERM, to which it ends in order."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(60)

    def ask(self, *command: str) -> str:
        """The server's answer to a command of the administrator, with plain line ends; empty if there is none."""
        lines = f"AUTH default {self.admin}\r\n" + " ".join(command) + "\r\n"
        where = (HOSTS["c"], str(self.port), self._authority if self.setup.tls else "")
        interpreter = [sys.executable, "-I", "-S", "-c", CLIENT, *where]
        plain = {k: v for k, v in self.environment.items() if k not in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
        try:
            done = self.network.run("c", interpreter, plain, ASK_S, given=lines)
        except subprocess.TimeoutExpired:
            return ""
        return done.stdout.partition("+OK\n")[2] if done.returncode == 0 else ""

    def wait_for_trouble(self, timeout_s: float) -> str:
        """Until a server whose disk is full has noticed: what became of it.

        Raises:
            StoreProblem: it hasn't within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if not self.alive:
                return "the server ended, as it can't keep its promise (`appendfsync always`)"
            if "aof_last_write_status:err" in self.ask("INFO", "persistence"):
                return "the server refuses writes (MISCONF)"
            time.sleep(0.5)
        raise StoreProblem(f"a full disk made no difference to the store within {timeout_s:g} s")

    def fill(self) -> Path:
        """Leave no room on its disk; returns the file that takes it."""
        filler = self.folder / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:  # no space left: as it should be
            while True:
                file.write(bytes(1 << 16))
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))
        return filler

    @property
    def _authority(self) -> str:
        return str(self.folder / "ca.crt")

    def _config(self) -> list[str]:
        setup = self.setup
        lines = [f"bind {HOSTS['c']} 127.0.0.1", "daemonize no", "dir .", 'save ""', "maxmemory-policy noeviction"]
        lines += ["appendonly yes", f"appendfsync {setup.fsync}", "aof-load-truncated yes"]
        lines += [f"user default reset on >{self.admin} ~* &* +@all"]
        if setup.least_rights:
            lines.append(acl_line(self.password))
        if setup.tls:
            lines += ["port 0", f"tls-port {self.port}", "tls-cert-file server.crt", "tls-key-file server.key"]
            lines += ["tls-ca-cert-file ca.crt", "tls-auth-clients no"]
        else:
            lines.append(f"port {self.port}")
        return lines


def _certificates(folder: Path, address: str) -> None:
    """An authority of our own, ca.crt, and server.crt with server.key for this address."""

    def openssl(*words: str) -> None:
        done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise StoreProblem(f"openssl {words[0]}: {done.stderr.strip()}")

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority of this test")
    openssl("req", *key[:-2], "-keyout", "server.key", "-out", "server.csr", "-subj", f"/CN={address}")
    (folder / "names").write_text(f"subjectAltName=IP:{address}\n")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "server.csr", "-out", "server.crt", *signed)
