"""The learner as the driver sees it, without ranks or a store."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.run.learning import Learning
from learner.batch import BatchError
from learner.group import LearnerDied
from learner.source import Batch, Stopped
from trajectories.errors import StoreUnreachable


class Source:
    """Gathers until it is asked to stop, and notes who is in it at a time."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, list[str]]] = []
        self.inside = threading.Semaphore(1)
        self.entered = threading.Event()

    def collect(self, version: int, stop: threading.Event) -> Batch:
        with self.inside:
            self.entered.set()
            if stop.wait(10):
                raise Stopped
            raise AssertionError("nobody asked it to stop")

    def refuse(self, batch: Any, refused: Any) -> None:
        assert self.inside.acquire(blocking=False), "another thread reads the stream"
        self.refused.append((batch, [r.group_id for r in refused]))
        self.inside.release()


def test_a_group_that_only_a_step_finds_unfit_is_refused_when_nobody_else_reads_the_stream() -> None:
    learning: Any = Learning.__new__(Learning)
    learning.source, learning.group, learning._stop = Source(), SimpleNamespace(), threading.Event()
    learning.config, learning._closing = SimpleNamespace(stall_timeout_s=10.0), threading.Event()
    learning._batch = lambda version: ("the next batch", version)
    stop = learning._stop
    with ThreadPoolExecutor(1) as pool:
        learning._gathering = pool.submit(learning._gather, 8)
        assert learning.source.entered.wait(10)
        assert learning._refuse_named("this batch", BatchError("unfit", ["g1"]), 7) == ("the next batch", 7)
    assert learning.source.refused == [("this batch", ["g1"])]
    assert stop.is_set() and not learning._stop.is_set() and learning._gathering is None


def test_ending_a_run_whose_learner_waits_for_its_next_try_to_start_takes_no_time() -> None:
    learning: Any = Learning.__new__(Learning)
    learning.config, learning.group, learning._stop = SimpleNamespace(stall_timeout_s=30.0), None, threading.Event()
    learning.pool, learning._closing = ThreadPoolExecutor(1), threading.Event()
    learning._gathering = learning._writing = learning._starting = None
    learning.patience = SimpleNamespace(failed=lambda failure: 30.0)
    learning.reading = learning.settling = SimpleNamespace(close=lambda: None)
    tries: list[bool] = []

    def start(resume: bool) -> None:
        tries.append(resume)
        raise LearnerDied(0, "killed")

    learning.start = start
    starting = learning.begin(resume=False)
    while not tries:
        time.sleep(0.01)
    began = time.monotonic()
    learning.close()
    assert time.monotonic() - began < 5 and tries == [False]
    with pytest.raises(LearnerDied):
        starting.result(timeout=0)


def test_a_recovery_in_the_background_is_ended_with_the_run_while_it_waits_for_its_store() -> None:
    learning: Any = Learning.__new__(Learning)
    learning.config, learning.group, learning._stop = SimpleNamespace(stall_timeout_s=30.0), None, threading.Event()
    learning.pool, learning._closing = ThreadPoolExecutor(1), threading.Event()
    learning._gathering = learning._writing = learning._starting = None
    learning.patience = SimpleNamespace(failed=lambda failure: 30.0)
    closed, asked = threading.Event(), threading.Event()
    learning.reading = learning.settling = SimpleNamespace(close=closed.set)

    def start(resume: bool) -> None:
        asked.set()
        closed.wait(30)  # as a call of a store that is away, which ends when its connection is closed
        raise StoreUnreachable("away")

    learning.start = start
    recovering = learning.begin_again(pause_s=0.0)
    assert asked.wait(10)
    began = time.monotonic()
    learning.close()
    assert time.monotonic() - began < 5
    with pytest.raises(StoreUnreachable):
        recovering.result(timeout=0)


def test_a_recovery_that_has_yet_to_begin_does_not_begin_when_the_run_ends() -> None:
    learning: Any = Learning.__new__(Learning)
    learning.pool, learning._closing = ThreadPoolExecutor(1), threading.Event()
    began: list[int] = []
    learning.recover = lambda: began.append(1)
    recovering = learning.begin_again(pause_s=30.0)
    learning._closing.set()
    recovering.result(timeout=5)
    assert began == []
