"""The processes of a cluster of our own: every one is ended, however the driver ends.

Ray's processes are marked by a variable of their environment, which their children inherit: a parent's death cuts the
family tree, but takes no mark away. A process that gives itself a title may write it over its environment, mark and
all, so that what was seen once is remembered. A guard, a small process of its own, looks now and then, waits for the
driver's end and then ends what carries the mark or was seen with it.

Run as a program, this file is the guard; it needs psutil only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator

import psutil

MARK = "RESTORL_CLUSTER"
GUARD_START_S = 30.0
LOOK_EVERY_S = 5.0  # of a guard
_LOOK_S = 0.1
_READY = b"r"


def marked(mark: str) -> list[psutil.Process]:
    """Living processes with that mark, and their descendants; never the caller."""
    found: dict[int, psutil.Process] = {}
    children: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # ended meanwhile, or another user's
            children.setdefault(process.ppid(), []).append(process)
            if process.environ().get(MARK) == mark:
                found[process.pid] = process
    parents = list(found)
    while parents:
        for process in children.get(parents.pop(), ()):
            if process.pid not in found:
                found[process.pid] = process
                parents.append(process.pid)
    found.pop(os.getpid(), None)
    return [p for p in found.values() if _lives(p)]


def end(mark: str, patience_s: float = 0.0, within_s: float = 20.0, known: Collection[psutil.Process] = ()) -> int:
    """Kill the processes with that mark which don't end by themselves within `patience_s`; returns how many.

    Returns once none is left, at the latest after `within_s` more.

    Args:
        known: seen with the mark before.
    """
    patience, killed = time.monotonic() + patience_s, set[int]()
    while (left := _left(mark, known)) and time.monotonic() < patience + within_s:
        if time.monotonic() >= patience:
            for process in left:
                with contextlib.suppress(psutil.Error):  # psutil compares the time of creation: never a successor
                    process.kill()
                    killed.add(process.pid)
        psutil.wait_procs(left, timeout=_LOOK_S)  # reaps those that are our children
    return len(killed)


def _left(mark: str, known: Collection[psutil.Process]) -> list[psutil.Process]:
    found = {process.pid: process for process in marked(mark)}
    # is_running compares the time of creation: a successor of the same number is another process.
    return [*found.values(), *(p for p in known if p.pid not in found and p.is_running() and _lives(p))]


class Guard:
    """A process that ends what carries `mark` as soon as this one is gone.

    It is no descendant of this process: what kills a whole tree spares it. It holds the end of a pipe whose other end
    closes with this process, whatever ends it.
    """

    def __init__(self, mark: str) -> None:
        with contextlib.ExitStack() as undo:
            alive, self._write = os.pipe()
            undo.callback(os.close, alive)
            self._read, told = os.pipe()
            undo.callback(os.close, told)
            subprocess.run(
                [sys.executable, "-P", __file__, mark],
                stdin=alive,
                stdout=told,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                timeout=GUARD_START_S,
                check=True,
            )
        if self._told(GUARD_START_S) != _READY:
            raise RuntimeError("the guard of the cluster's processes did not start")

    def look(self) -> None:
        """Let it look at once, so that it knows what has just been started."""
        os.write(self._write, b"l")

    def release(self, timeout_s: float = 20.0) -> None:
        """Let it look a last time and end; a second call does nothing."""
        if self._write < 0:
            return
        os.close(self._write)
        self._write = -1
        self._told(timeout_s)
        os.close(self._read)

    def _told(self, timeout_s: float) -> bytes:
        readable, _, _ = select.select([self._read], [], [], timeout_s)
        return os.read(self._read, 1) if readable else b""


@contextlib.contextmanager
def marking(mark: str) -> Iterator[None]:
    """What is started within the block carries the mark."""
    before = os.environ.get(MARK)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(MARK, None)
        else:
            os.environ[MARK] = before


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _guard(mark: str) -> None:
    if os.fork():  # the parent ends: the guard belongs to init
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    os.write(1, _READY)
    known: dict[int, psutil.Process] = {}
    while not select.select([0], [], [], LOOK_EVERY_S)[0] or os.read(0, 1):
        known |= {process.pid: process for process in marked(mark)}
    end(mark, within_s=60.0, known=known.values())


if __name__ == "__main__":
    _guard(sys.argv[1])
