"""The pulse of a run: live.json, written anew every few seconds, by which `restorl status` knows that the driver lives.

It is only looked at. The thread beats whatever the driver waits for; `turned` says when its loop went round last.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.files import write_text
from cluster.report.live import FAILED, FINISHED, LIVE_FILE, STARTING, STOPPED, STOPPING, UNDER_WAY
from cluster.run.looking import ForLooking

BEAT_S = 2.0
LOOK_S = 1.0  # the loop tells at most so often what it sees
KIND = f"the pulse ({LIVE_FILE})"  # as `ForLooking` tells of it


class Pulse:
    """Beats while entered.

    Args:
        mine: whether the folder is still this process's to write to.
        facts: what doesn't change, such as the run's id.
        asked: whether the run was asked to end.

    Attributes:
        state: what the run does; whoever knows sets it.
        doing: what is waited for, where that may take long.
    """

    def __init__(
        self,
        folder: Path,
        looking: ForLooking,
        mine: Callable[[], bool],
        facts: Mapping[str, Any],
        asked: Callable[[], bool] = lambda: False,
        every_s: float = BEAT_S,
    ) -> None:
        self.path, self.looking, self.mine, self.asked, self.every_s = folder / LIVE_FILE, looking, mine, asked, every_s
        self.state, self.doing = STARTING, ""
        self._facts = {**facts, "pid": os.getpid(), "host": socket.gethostname(), "began": time.time()}
        self._seen: dict[str, Any] = {}
        self._turned: float | None = None
        self._seen_at = -LOOK_S
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._stop.is_set():
            self.end(error)
        self._thread.join(timeout=10 * self.every_s)  # a disk that doesn't answer isn't waited for longer

    def turned(self, look: Callable[[], dict[str, Any]]) -> None:
        """The driver's loop goes round; `look` says what it sees, and is asked about once a second."""
        self._turned = time.time()
        if (now := time.monotonic()) - self._seen_at >= LOOK_S:
            self._seen_at = now
            self._seen = look()

    def end(self, error: BaseException | None) -> None:
        """The last beat: how the run ended."""
        self._stop.set()
        self.state, self.doing = ending(error)
        self._beat()

    def stop(self) -> None:
        """Not another beat: the folder is another's."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self._beat()

    def _beat(self) -> None:
        if not self._writing.acquire(timeout=self.every_s):
            return  # one is being written, on a disk that doesn't answer
        try:
            state = STOPPING if self.state in UNDER_WAY and self.asked() else self.state
            beat = {"time": time.time(), "state": state, "doing": self.doing, "turned": self._turned}
            with self.looking.bearing(KIND):
                if self.mine():
                    write_text(self.path, json.dumps({**self._facts, **self._seen, **beat}) + "\n")
        finally:
            self._writing.release()


def ending(error: BaseException | None) -> tuple[str, str]:
    """(state, why) of a run that ends."""
    if error is None:
        return FINISHED, ""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, str(error)
    return FAILED, f"{type(error).__name__}: {error}"
