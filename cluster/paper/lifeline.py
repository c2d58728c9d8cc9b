"""A process that ends with the one that started it, whatever ended that: kill -9 leaves nobody to end it.

The starter holds the one end of a pipe, whose other end is the process's standard input: it closes with the starter.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

PATIENCE_S = 60.0


def end_with_starter(fd: int = 0, patience_s: float = PATIENCE_S) -> None:
    """From here on this process gets SIGTERM when the pipe `fd` closes, and is gone after `patience_s` more."""

    def watch() -> None:
        with suppress(OSError):  # no pipe any more: its other end can't be there either
            while os.read(fd, 1):
                continue
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(patience_s)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
