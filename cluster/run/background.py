"""Work beside other work, whose failure must not wait until somebody needs its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

T = TypeVar("T")
LOOK_S = 0.5  # between two looks at what goes on beside


def has_failed(future: Future[Any] | None) -> bool:
    """Whether it has ended, and without a result."""
    return future is not None and future.done() and (future.cancelled() or future.exception() is not None)


def raise_failed(futures: Iterable[Future[Any] | None]) -> None:
    """Raises what the first of them that has failed was ended by."""
    for future in futures:
        if future is not None and has_failed(future):
            future.result()


def watched(work: Future[T], beside: Callable[[], Iterable[Future[Any] | None]], look_s: float = LOOK_S) -> T:
    """The result of `work`; or, within `look_s` of it, the failure of something beside it. `work` then goes on.

    Args:
        beside: asked at every look, since what goes on changes.

    Raises:
        Whatever `work`, or something beside it, was ended by.
    """
    while not wait([work], timeout=look_s).done:
        raise_failed(beside())
    return work.result()
