"""A deadline for calls that have none of their own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def in_thread(call: Callable[[], T], name: str | None = None) -> Future[T]:
    """Begin `call` in a thread of its own, which doesn't keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def bounded(call: Callable[[], T], timeout_s: float, what: str) -> T:
    """The result of `call`, made in a thread of its own, so that signals are handled while it waits.

    A call that is too late goes on in its thread, which doesn't keep the process alive; its result is lost.

    Raises:
        TimeoutError: it took longer than `timeout_s`; names `what`.
        Whatever `call` raises.
    """
    future = in_thread(call, f"bounded: {what}")
    try:
        return future.result(timeout=max(timeout_s, 0.0))
    except TimeoutError:
        if future.done():  # the call's own
            raise
        raise TimeoutError(f"{what} took longer than {timeout_s:g} s") from None
