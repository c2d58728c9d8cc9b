"""The run's stream as the driver uses it: a store that is away for a while is borne as actors and ranks bear it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cluster.run.failures import Fatal, Kind, Patience, classify
from cluster.run.interrupts import Interrupts
from trajectories.audit import AuditReport
from trajectories.stream import Depth, TrajectoryStream

T = TypeVar("T")
TRIES = 5  # of one call, in a row; as often as the learner is started again
LONG_S = 1.0  # a call that took longer waited for the store


class DriverStream:
    """Each call is repeated while the store is away, a bounded number of times, and given up when a signal asks to end.

    Args:
        stream: whose calls wait `store.reconnect_timeout_s` for the store by themselves.
        interrupts: of the run.

    Attributes:
        assumed: ids of groups that count as published, of which the store knows nothing.
        waiting: groups that were unsettled when that was asked last; None before.
        returned: when the store was last there again, on the monotonic clock: what stood still until then is no fault.

    Raises (of every call):
        Fatal: the store stayed away, or what trying again won't change.
        OSError: a file of the run can't be written.
        Asked: a signal asks to end.
    """

    def __init__(self, stream: TrajectoryStream, interrupts: Interrupts) -> None:
        self.stream, self.interrupts = stream, interrupts
        self.patience = Patience("the driver's calls of the store", TRIES, pause_s=1.0)
        self.returned = 0.0
        self.assumed: set[str] = set()
        self.waiting: int | None = None

    def unsettled(self, epoch: int) -> dict[str, str]:
        found = self._call(lambda: self.stream.unsettled(epoch))
        self.waiting = len(found)
        return found

    def published_groups(self) -> set[str]:
        return self._call(self.stream.published_groups) | self.assumed

    def depth(self) -> Depth:
        return self._call(self.stream.depth)

    def memory(self) -> tuple[int | None, int | None]:
        return self._call(self.stream.memory)

    def export_ledger(self, path: Path, epoch: int) -> AuditReport:
        return self._call(lambda: self.stream.export_ledger(path, epoch))

    def _call(self, exchange: Callable[[], T]) -> T:
        began = time.monotonic()
        while True:
            try:
                answer = self.interrupts.beside(exchange)
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # of a file that is written; those of the store are StoreErrors
                failure = classify(error)
                if failure.kind is not Kind.TRANSIENT or failure.reason == "epoch":
                    raise Fatal(self.patience.what, failure) from error
                self.interrupts.pause(self.patience.failed(failure))
                continue
            self.patience.progressed()
            if (now := time.monotonic()) - began > LONG_S:
                self.returned = now
            return answer
