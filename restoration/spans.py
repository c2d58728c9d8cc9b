"""What a process was busy with, and when: a few spans of time, kept until somebody asks for them."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MOST = 512  # that wait to be asked for; of more the oldest go


@dataclass(frozen=True)
class Span:
    """
    Attributes:
        start, end: seconds since 1970, by the clock of the process's host.
        note: such as the work item that it was for.
    """

    name: str
    start: float
    end: float
    note: str = ""


@dataclass(frozen=True)
class Spans:
    """Spans of one process, as it sends them.

    Attributes:
        arrived, sent: when it was asked for them (or for the work that they tell of), and when it answered, by the
            clock of its host. Whoever asked knows by these how far that clock is from its own.
    """

    host: str
    pid: int
    arrived: float
    sent: float
    spans: tuple[Span, ...] = ()


class SpanLog:
    """Spans of this process, at most `most`; any thread may add some.

    They are measured by the monotonic clock, and told by the other: a clock that is set meanwhile bends none.
    """

    def __init__(self, most: int = MOST) -> None:
        self._kept: deque[tuple[str, float, float, str]] = deque(maxlen=most)

    @contextmanager
    def span(self, name: str, note: str = "") -> Iterator[None]:
        """What is done in here, well or badly, is one span."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, began, time.monotonic(), note)

    def add(self, name: str, start: float, end: float, note: str = "") -> None:
        """A span that was measured elsewhere, by the monotonic clock."""
        self._kept.append((name, start, end, note))

    def take(self, arrived: float | None = None) -> Spans:
        """All spans since the last `take`.

        Args:
            arrived: when the work began that they tell of, by the monotonic clock; now if not given.
        """
        now = time.monotonic()
        offset = time.time() - now
        taken = []
        while self._kept:
            name, start, end, note = self._kept.popleft()
            taken.append(Span(name, start + offset, end + offset, note))
        came = offset + (now if arrived is None else arrived)
        return Spans(socket.gethostname(), os.getpid(), came, offset + now, tuple(taken))
