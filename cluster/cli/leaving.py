"""The end of a command: all is flushed and closed, but the interpreter isn't taken apart."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

FLUSH_FAILED = 120  # Python's own status for it


def leave(status: int) -> NoReturn:
    """End this process. Threads that aren't daemons are waited for, exit handlers run, output is flushed.

    What Python does besides, clearing all modules, takes seconds with torch and Ray loaded, and nothing needs it.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # whoever read it is gone
            status = status or FLUSH_FAILED
    os._exit(status)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """The process ends with the SystemExit that the block raises, at the latest with the block.

    Any other exception goes on its way.
    """
    try:
        yield
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    leave(0)
