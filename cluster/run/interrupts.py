"""Ctrl-C, and the requests of schedulers to end: SIGINT, SIGTERM, SIGHUP do the same.

    with Interrupts() as interrupts:
        ...                  # while things start, the first signal ends them at once, as a KeyboardInterrupt
        interrupts.defer()
        while interrupts.requested is None:
            ...              # from here the first only asks; the second is a KeyboardInterrupt
            interrupts.beside(work)     # what may take long is given up when one asks
        ...                  # nor does a first signal disturb the shutdown

Ray installs handlers of its own when it starts, which abort the process: `keep_handlers` goes around `ray.init`.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from types import FrameType, TracebackType
from typing import Any, TypeVar

from reward_service.bounded import in_thread

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_S = 0.2  # how often a wait looks whether a signal has come


class Stopped(KeyboardInterrupt):
    """A signal ends this process. `signal` is its number, which decides the exit status."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = signal.Signals(number)


class Asked(Stopped):
    """A first signal came while something was waited for, which is given up: the run ends as it was asked to."""


class Interrupts:
    """Handles signals while entered. Only the main thread can; in another one nothing is handled.

    A KeyboardInterrupt that leaves the block has the attribute `signal`, the first one that came.

    Attributes:
        requested: the first signal that came, or None.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._deferred = False
        self._before: dict[signal.Signals, Any] = {}

    def defer(self) -> None:
        """From here on the first signal only sets `requested`.

        Raises:
            Stopped: one has come already, and got lost: Python drops what is raised within some of Ray's callbacks.
        """
        self._deferred = True
        if self.requested is not None:
            raise Stopped(number=self.requested)

    def look(self) -> None:
        """Raises Asked if a signal has come."""
        if self.requested is not None:
            raise Asked(number=self.requested)

    def result(self, future: Future[T]) -> T:
        """The result of `future`, however long that takes, unless a signal asks to end.

        Raises:
            Asked: it came first, and what works on the future goes on.
            Whatever the future raises.
        """
        while not wait([future], LOOK_S).done:
            self.look()
        return future.result()

    def beside(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in a thread that doesn't keep the process alive. Raises as `result` does."""
        self.look()
        return self.result(in_thread(work))

    def pause(self, seconds: float) -> None:
        """Sleep, unless a signal asks to end: raises Asked."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self.look()
            time.sleep(min(left, LOOK_S))

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if number == signal.SIGHUP and before == signal.SIG_IGN:
                    continue  # nohup: the user wants it to outlive the terminal
                self._before[number] = before
                signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        # ray.get makes a plain KeyboardInterrupt of whatever a handler raises.
        if isinstance(error, KeyboardInterrupt) and not hasattr(error, "signal") and self.requested is not None:
            error.signal = self.requested  # type: ignore[attr-defined]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        first, self.requested = self.requested is None, self.requested or signal.Signals(number)
        if not (first and self._deferred):
            raise Stopped(number=self.requested)


@contextlib.contextmanager
def keep_handlers() -> Iterator[None]:
    """What handled signals before the block handles them after it, and Ray's own handler isn't set in between.

    Ray's core has one, too, which hands a signal on to what was there before, but first sets an alarm that aborts the
    process 3 s later: it is taken off.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    from ray._private import utils

    before = {number: signal.getsignal(number) for number in SIGNALS}
    (left_s, every_s), began = signal.getitimer(signal.ITIMER_REAL), time.monotonic()
    setter = getattr(utils, "set_sigterm_handler", None)
    if setter is not None:
        utils.set_sigterm_handler = _set_nothing
    try:
        yield
    finally:
        if setter is not None:
            utils.set_sigterm_handler = setter
        for number, handler in before.items():
            if handler is not None:  # None: set by other than Python, which can't set it again
                signal.signal(number, handler)
        # An alarm that somebody else had set goes on.
        left_s = max(left_s - (time.monotonic() - began), 0.001) if left_s else 0.0
        signal.setitimer(signal.ITIMER_REAL, left_s, every_s)


def _set_nothing(handler: Any) -> None:
    pass
