"""Failures of what goes on beside other work."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from cluster.run.background import has_failed, raise_failed, watched


def ended(error: Exception | None = None) -> Future[int]:
    done: Future[int] = Future()
    if error is None:
        done.set_result(1)
    else:
        done.set_exception(error)
    return done


def test_what_fails_beside_other_work_is_raised_while_that_work_goes_on() -> None:
    let_go, beside = threading.Event(), Future[None]()
    with ThreadPoolExecutor(2) as pool:
        work = pool.submit(let_go.wait, 30)
        watching = pool.submit(watched, work, lambda: (None, beside), 0.01)
        time.sleep(0.05)
        assert not watching.done()
        beside.set_exception(OSError("disk full"))
        with pytest.raises(OSError, match="disk full"):
            watching.result(timeout=10)
        assert not work.done()
        let_go.set()


def test_what_begins_beside_it_later_is_looked_at_too() -> None:
    beside, let_go = list[Future[int]](), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        watching = pool.submit(watched, pool.submit(let_go.wait, 30), lambda: beside, 0.01)
        beside.append(ended(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            watching.result(timeout=10)
        let_go.set()


def test_work_that_ends_gives_its_own_result_or_error_at_once() -> None:
    began = time.monotonic()
    assert watched(ended(), lambda: (ended(),), 30) == 1
    with pytest.raises(KeyError):
        watched(ended(KeyError("x")), lambda: (ended(OSError()),), 30)
    assert time.monotonic() - began < 10


def test_only_what_has_ended_without_a_result_has_failed() -> None:
    given_up: Future[int] = Future()
    given_up.cancel()
    found = [has_failed(f) for f in (None, Future(), ended(), ended(OSError()), given_up)]
    assert found == [False, False, False, True, True]
    raise_failed((None, Future(), ended()))
