"""The learner as the driver sees it, without ranks or a store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.run.failures import Fatal, Kind, Patience, classify
from cluster.run.learning import Learning
from learner.batch import BatchError
from learner.checkpoint import CheckpointError
from learner.group import LearnerDied, LearnerUnplaced
from learner.source import Batch, Stopped
from restoration.spans import SpanLog
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
    learning.config, learning._given_up = SimpleNamespace(stall_timeout_s=10.0), threading.Event()
    learning._batch = lambda version: ("the next batch", version)
    stop = learning._stop
    with ThreadPoolExecutor(1) as pool:
        learning._gathering = pool.submit(learning._gather, 8)
        assert learning.source.entered.wait(10)
        assert learning._refuse_named("this batch", BatchError("unfit", ["g1"]), 7) == ("the next batch", 7)
    assert learning.source.refused == [("this batch", ["g1"])]
    assert stop.is_set() and not learning._stop.is_set() and learning._gathering is None


def test_a_step_that_was_given_up_while_it_refuses_groups_waits_for_no_others() -> None:
    """Else the ranks start again only once `source.timeout_s` is over."""
    learning: Any = Learning.__new__(Learning)
    learning.source, learning.group, learning._stop = Source(), SimpleNamespace(), threading.Event()
    learning.config, learning._given_up = SimpleNamespace(stall_timeout_s=10.0), threading.Event()
    learning._batch = lambda version: ("the next batch", learning._stop.is_set())
    with ThreadPoolExecutor(1) as pool:
        learning._gathering = pool.submit(learning._gather, 8)
        assert learning.source.entered.wait(10)
        learning._given_up.set()
        assert learning._refuse_named("this batch", BatchError("unfit", ["g1"]), 7) == ("the next batch", True)


def test_ending_a_run_whose_learner_waits_for_its_next_try_to_start_takes_no_time() -> None:
    learning: Any = Learning.__new__(Learning)
    learning.config, learning.group, learning._stop = SimpleNamespace(stall_timeout_s=30.0), None, threading.Event()
    learning.pool, learning._closing, learning._given_up = ThreadPoolExecutor(1), threading.Event(), threading.Event()
    learning._gathering = learning._writing = learning._starting = learning._stepping = learning._publishing = None
    learning.patience, learning.durable = SimpleNamespace(failed=lambda failure: 30.0), -1
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


NO_ROOM = LearnerUnplaced("the cluster has no room for 1 learner ranks")
SAID = "no room for 1 learner ranks; add nodes, lower actors.count .* then go on with --resume"


def test_ranks_that_find_no_place_at_the_start_end_it_with_what_to_do() -> None:
    learning: Any = Learning.__new__(Learning)
    learning.pool, learning._closing, learning.start = ThreadPoolExecutor(1), threading.Event(), unplaced
    with pytest.raises(Fatal, match=f"^the learner: the cluster has {SAID}"):
        learning.begin(resume=False).result(timeout=10)


def test_ranks_that_lost_their_place_are_waited_for_and_not_for_ever() -> None:
    learning: Any = Learning.__new__(Learning)
    learning._closing, learning._quiesce, tries = threading.Event(), lambda: None, []
    learning.patience = Patience("the learner", 2, pause_s=0.0)
    learning.start = lambda resume: (tries.append(resume), len(tries) < 3 and unplaced(resume))
    learning.recover()  # a node came
    assert len(tries) == 3
    learning.patience.progressed()
    learning.start = unplaced
    with pytest.raises(Fatal, match=f"^the learner failed 3 times without progress, the last time: .*{SAID}"):
        learning.recover()


def unplaced(resume: bool) -> None:
    raise NO_ROOM


class Group:
    """Ranks whose checkpoint fails once they are told to, and whose steps last until they are closed."""

    weights_version = 3

    def __init__(self) -> None:
        self.disk_full, self.stepping, self.closed = threading.Event(), threading.Event(), threading.Event()

    def prepare(self, summaries: Any) -> list[Any]:
        return []

    def step(self, summaries: Any) -> Any:
        self.stepping.set()
        assert self.closed.wait(20)
        raise LearnerDied(0, "the group was closed")

    def write(self, *_: Any) -> None:
        assert self.disk_full.wait(20)
        raise CheckpointError("checkpoint 3 can't be written: No space left on device")

    def close(self) -> None:
        self.closed.set()


class Phase:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def learning() -> Iterator[Any]:
    """In the step after version 3, whose checkpoint is being written."""
    made: Any = Learning.__new__(Learning)
    made.config = SimpleNamespace(
        iterations=9, stall_timeout_s=10.0, keep_checkpoints=3, source=SimpleNamespace(timeout_s=20.0)
    )
    made.metrics, made.spans = SimpleNamespace(phase=lambda name: Phase()), SpanLog()
    made.group, made.source, made.root, made.protected, made.durable = Group(), Source(), Path("runs"), set(), 2
    made.pool, made._collective = ThreadPoolExecutor(4), threading.Lock()
    made._closing, made._stop, made._given_up = threading.Event(), threading.Event(), threading.Event()
    made._starting = made._stepping = made._gathering = made._publishing = None
    made.reading = made.settling = SimpleNamespace(close=lambda: None)
    made._writing = made.pool.submit(made._write, made.group, made.source, 3, {}, {})
    yield made
    made.group.disk_full.set()
    made.close()


def test_a_checkpoint_that_fails_ends_the_step_that_waits_for_its_batch_within_seconds(learning: Any) -> None:
    step = learning.start_next(wait=False)
    assert learning.source.entered.wait(10) and not step.done()
    learning.group.disk_full.set()
    with pytest.raises(CheckpointError, match="No space left") as raised:
        step.result(timeout=5)
    failure = classify(raised.value)
    assert failure.kind is Kind.FATAL and "put it right, then go on with --resume" in failure.remedy
    assert learning.durable == 2


@pytest.mark.parametrize("what", ["checkpoint", "next batch"])
def test_what_fails_beside_a_step_on_the_ranks_ends_it_within_seconds(learning: Any, what: str) -> None:
    learning._gathering = Future()
    learning._gathering.set_result(SimpleNamespace(groups=[]))
    step = learning.start_next(wait=False)
    assert learning.group.stepping.wait(10)
    if what == "checkpoint":
        learning.group.disk_full.set()
    else:
        learning._gathering = failed = Future[Any]()
        failed.set_exception(StoreUnreachable("redis://there: no answer"))
    with pytest.raises((CheckpointError, StoreUnreachable), match="No space left" if what == "checkpoint" else "there"):
        step.result(timeout=5)


def test_a_checkpoint_that_fails_is_told_though_evaluations_hold_the_next_step_back(learning: Any) -> None:
    assert learning.start_next(wait=True) is None
    learning.group.disk_full.set()
    wait([learning._writing], timeout=10)
    with pytest.raises(CheckpointError, match="No space left"):
        learning.start_next(wait=True).result(timeout=5)
    assert not learning.source.entered.is_set()  # no step has begun


def test_ranks_that_are_found_dead_when_lost_weights_are_to_be_published_again_are_told_too(learning: Any) -> None:
    def publish() -> None:
        raise LearnerDied(0, "its node is lost")

    learning.group.publish = publish
    learning.publish_again()
    for held_back in (True, False):
        with pytest.raises(LearnerDied, match="its node is lost"):
            learning.start_next(wait=held_back).result(timeout=5)
    assert not learning.source.entered.is_set()


def test_a_step_that_was_given_up_has_ended_before_the_learner_starts_again(learning: Any) -> None:
    seen: list[str] = []

    def step() -> None:
        learning.group.closed.wait(20)
        time.sleep(0.2)
        seen.append("the step has ended")

    learning.start = lambda resume: seen.append("start")
    learning._stepping = learning.pool.submit(step)
    learning.group.disk_full.set()
    learning.recover()
    assert seen == ["the step has ended", "start"]


def test_a_checkpoint_that_is_on_disk_is_not_told_as_missing_where_a_run_ends_without_its_store(
    learning: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def write(*_: Any) -> None:
        assert learning.group.disk_full.wait(20)

    def settle(used: Any) -> None:
        raise StoreUnreachable("away")

    learning.group.disk_full.set()  # the one before
    wait([learning._writing], timeout=10)
    learning.group.disk_full.clear()
    learning.group.write, learning.source.settle = write, settle
    learning._writing = learning.pool.submit(learning._write, learning.group, learning.source, 3, {}, {})
    threading.Timer(0.2, learning.group.disk_full.set).start()
    with caplog.at_level(logging.WARNING):
        learning.close()
    assert "the last checkpoint is on disk" in caplog.text and "not on disk" not in caplog.text


def test_a_checkpoint_that_fails_while_a_run_ends_is_told(learning: Any, caplog: pytest.LogCaptureFixture) -> None:
    threading.Timer(0.2, learning.group.disk_full.set).start()
    with caplog.at_level(logging.WARNING):
        learning.close()
    assert "the last checkpoint is not on disk: checkpoint 3 can't be written: No space left" in caplog.text


def test_a_recovery_in_the_background_is_ended_with_the_run_while_it_waits_for_its_store() -> None:
    learning: Any = Learning.__new__(Learning)
    learning.config, learning.group, learning._stop = SimpleNamespace(stall_timeout_s=30.0), None, threading.Event()
    learning.pool, learning._closing, learning._given_up = ThreadPoolExecutor(1), threading.Event(), threading.Event()
    learning._gathering = learning._writing = learning._starting = learning._stepping = None
    learning.patience, learning.durable = SimpleNamespace(failed=lambda failure: 30.0), -1
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
