"""Which nodes of the cluster are alive, asked beside the run: a call into Ray may take long just when one is lost."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass

import ray

EVERY_S = 2.0
END_S = 5.0  # for the last look, which Ray may not answer any more


@dataclass(frozen=True)
class Nodes:
    """Ids of the living nodes, as the cluster knew them at some time after `asked` (monotonic clock)."""

    asked: float
    alive: frozenset[str]


class NodeWatch:
    """Looks every few seconds while entered. A cluster that doesn't answer changes nothing.

    Attributes:
        latest: what the last look found; None before the first.
    """

    def __init__(self, every_s: float = EVERY_S) -> None:
        self.every_s = every_s
        self.latest: Nodes | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)

    def __enter__(self) -> NodeWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(END_S)

    def _run(self) -> None:
        while True:
            asked = time.monotonic()
            with contextlib.suppress(Exception):  # tried again at the next look; calls of actors tell what is wrong
                found = ray.nodes()
                self.latest = Nodes(asked, frozenset(str(node["NodeID"]) for node in found if node["Alive"]))
            if self._stop.wait(self.every_s):
                return
