"""A Ray of our own on this machine: started, retried, and ended to its last process."""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.processes import Guard, end, marking
from cluster.run.interrupts import keep_handlers
from cluster.watched_later import WatchedLater

START_ATTEMPTS = 4
FIRST_PAUSE_S = 1.0
STOP_PATIENCE_S = 3.0  # Ray's processes follow one another within seconds
LONGEST_SOCKET_PATH = 107  # bytes, of Linux
_SOCKET_OF_SESSION = len("/ray/session_2026-01-01_00-00-00_000000_/sockets/plasma_store")
_SOCKET_OF_PYTHON = len("/pymp-12345678/listener-12345678")  # of multiprocessing, which Ray's dashboard uses


class LocalRay:
    """One local cluster, and the guard that ends it should this process be killed.

    Attributes:
        watched: its dashboard and the like, which start when they are asked to.
    """

    def __init__(self) -> None:
        self.mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self.guard = Guard(self.mark)
        self.watched = WatchedLater(self.mark)

    def start(self, options: dict[str, Any]) -> Any:
        """ray.init; returns its context.

        Ray gives a starting node 30 s, too few on a small machine that is busy: such an attempt is repeated. Whatever
        an attempt has started ends with it.
        """
        import ray

        for attempt in range(START_ATTEMPTS):
            try:
                with marking(self.mark), on_loopback(), any_agent_port(), keep_handlers(), self.watched.left_out():
                    context = ray.init(address="local", **options)
                self.guard.look()
                return context
            except BaseException as error:
                ray.shutdown()
                end(self.mark)
                if attempt + 1 == START_ATTEMPTS or "timed out" not in str(error):
                    raise
            time.sleep(FIRST_PAUSE_S * 2**attempt * random.uniform(0.75, 1.25))
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """End what ray.shutdown has left."""
        try:
            end(self.mark, patience_s=STOP_PATIENCE_S)
        finally:
            self.guard.release()


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Ray's node is called 127.0.0.1 and listens there only, as it does by default where firewalls ask (macOS).

    Its processes read a variable of their environment; this one has read it at import.
    """
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", None)
    if before is None:  # a private name: without it the node is called by its address, and listens there
        yield
        return
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def any_agent_port() -> Iterator[None]:
    """The dashboard's agent takes a free port, not the one that every other Ray of the machine wants, too."""
    from ray._private.parameter import RayParams

    made = RayParams.__init__

    def make(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **{"dashboard_agent_listen_port": 0, **options})

    RayParams.__init__ = make  # type: ignore[method-assign]
    try:
        yield
    finally:
        RayParams.__init__ = made  # type: ignore[method-assign]


def folder_of_sessions() -> Path:
    """Where Ray keeps sockets and logs, a folder for each cluster that was started."""
    return (Path(_temporary()[1]) / "ray").absolute()


def logs_of_own_session() -> Path | None:
    """Where the cluster that this process started last has its logs; None if Ray didn't get so far.

    `session_latest` there is whoever's cluster started last on this machine.
    """
    sessions = folder_of_sessions().glob(f"session_*_{os.getpid()}")  # their names begin with the time
    return max((path for s in sessions if (path := s / "logs").is_dir()), default=None)


def too_long_for_sockets() -> str | None:
    """What to do if the temporary folder's path leaves no room for the names of Ray's sockets; None if it does."""
    name, parent = _temporary()
    length = len(os.fsencode(parent)) + _SOCKET_OF_SESSION + len(str(os.getpid()))
    if length <= LONGEST_SOCKET_PATH:
        return None
    return (
        f"Ray can't start: {name}={parent} makes the paths of its sockets {length} bytes long, and "
        f"{LONGEST_SOCKET_PATH} is the most; set RAY_TMPDIR=/tmp"
    )


def room_for_sockets() -> dict[str, str]:
    """The TMPDIR that Ray's processes need: Ray's own folder if the user's is too deep for Python's sockets, else none.

    RAY_TMPDIR moves Ray's files, but its dashboard's processes meet in TMPDIR, and it doesn't start without them.
    """
    parent = os.environ.get("TMPDIR", "/tmp")
    return {} if len(os.fsencode(parent)) + _SOCKET_OF_PYTHON <= LONGEST_SOCKET_PATH else {"TMPDIR": _temporary()[1]}


def _temporary() -> tuple[str, str]:
    """(variable, folder) that Ray takes; as Ray does, one that is set to nothing is the working directory."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if name in os.environ:
            return name, os.environ[name]
    return "TMPDIR", "/tmp"


def address_of_ray_start() -> str | None:
    """The cluster that `ray start` started or joined last on this machine; never one that a program keeps to itself."""
    for parent in (os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp"):
        if parent:
            try:
                return (Path(parent) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip() or None
            except OSError:
                continue
    return None
