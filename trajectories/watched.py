"""A program of its own: runs one command as a child that never outlives the process which asked for it.

    python -I -S watched.py       then one line on stdin: {"parent": 123, "command": ["...", ...], "folder": "..."}

Answers with one line on stdout, the child's process id or `error: ...`, and ends when the child does, with its status.
The command comes by stdin, so that a search of the process list finds the child under its name and nothing else.

The parent's death is seen in the parent id, which changes for every way to die. A pipe's end would come late where a
forked sibling holds the pipe, and a "parent death signal" sent to the child itself would fire when the parent's
*thread* ends. Between this process, which has one thread, and the child that signal is right.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

LOOK_S = 0.5  # how often to look whether the parent is there
PATIENCE_S = 10.0  # from the request to end until the child is killed
_PR_SET_PDEATHSIG = 1


def main() -> int:
    request = json.loads(sys.stdin.readline())
    try:
        child = subprocess.Popen(
            request["command"],
            cwd=request["folder"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,  # it shares the lock that was handed down
            preexec_fn=_die_with_me(),
        )
    except OSError as error:
        print(f"error: {error}", flush=True)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    with contextlib.suppress(BrokenPipeError):  # the parent is gone already, as the loop will see
        print(child.pid, flush=True)
    while os.getppid() == request["parent"]:
        try:
            return _status(child.wait(LOOK_S))
        except subprocess.TimeoutExpired:
            continue
    child.terminate()
    try:
        return _status(child.wait(PATIENCE_S))
    except subprocess.TimeoutExpired:
        child.kill()
        return _status(child.wait())


def _die_with_me() -> Callable[[], None] | None:
    """What the child does before it becomes the command: ask Linux to kill it when this process ends."""
    if sys.platform != "linux":
        return None
    prctl, me = ctypes.CDLL(None).prctl, os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(1)

    return ask


def _status(code: int) -> int:
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
