"""The driver's loop with stand-ins for the parts and for the run folder."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.recipe import RunConfig
from cluster.run import driver
from cluster.run.evaluations import Evaluations
from cluster.run.interrupts import Interrupts
from cluster.run.learning import StepResult
from cluster.run.state import Interrupted


class Learner:
    """Its version is there before the step is complete."""

    def __init__(self, iterations: int) -> None:
        self.version, self.iterations, self.waited = 0, iterations, list[bool]()
        self.source, self.epoch, self.durable = SimpleNamespace(used_groups=set), 1, -1

    def start_next(self, wait: bool) -> Future[StepResult | None] | None:
        self.waited.append(wait)
        if wait or self.version == self.iterations:
            return None
        self.version += 1
        done: Future[StepResult | None] = Future()
        done.set_result(StepResult(self.version, {}))
        return done


class Actors:
    """One actor with two slots, which answers a call at the next look."""

    def __init__(self) -> None:
        self.calls: dict[str, Any] = {}

    def free(self) -> list[int]:
        return [0] * (2 - len(self.calls))

    def take(self, ref: str) -> tuple[Any, Any]:
        return self.calls.pop(ref), "result"


class Parts:
    def __init__(self, config: RunConfig, *_: object) -> None:
        self.learning, self.actors = Learner(config.iterations), Actors()
        self.stream = SimpleNamespace(unsettled=lambda epoch: {})
        self.rolled: list[int] = []
        self.looks = 0

    def of(self, run_id: str, interrupts: Interrupts) -> Parts:
        return self

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def version(self) -> int:
        return self.learning.version

    def rolling(self) -> set[str]:
        return {str(c.index) for c in self.actors.calls.values() if hasattr(c, "index")}

    def evaluating(self) -> set[int]:
        return {0 for c in self.actors.calls.values() if not hasattr(c, "index")}

    def roll(self, actor: int, item: Any) -> None:
        self.rolled.append(item.index)
        self.actors.calls[f"roll {item.index}"] = item

    def evaluate(self, actor: int, part: Any, known: Any) -> None:
        assert 0 not in self.evaluating(), "one part an actor"
        self.actors.calls[f"evaluate {part.image_ids}"] = part

    def wait(self, learning: Any) -> tuple[list[str], bool]:
        self.looks += 1
        assert self.looks < 200, "the loop does not end"
        return list(self.actors.calls), learning is not None and self.looks % 2 == 0


class State:
    def __init__(self, config: RunConfig, *_: object) -> None:
        self.run_id, self.recorded = "run", list[int]()
        self.interrupts, self.notes, self.folder = Interrupts(), list[str](), Path("runs/one")
        self.display = SimpleNamespace(note=self.notes.append)
        self.turns, self.timed = 0, list[Any]()
        self.timeline = SimpleNamespace(ended=lambda call, result: self.timed.append((call, result)))
        evaluations = Evaluations(["a", "b"], [["a"], ["b"]])
        evaluations.begin(0, "base", None)
        self.heldout = SimpleNamespace(evaluations=evaluations, base_rows=[], backlog=0, advance=self.advance)
        self.items = 0
        self.work = SimpleNamespace(peek=lambda: self.item(), take=self.take)

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def interrupted(self) -> bool:
        return self.interrupts.requested is not None

    def begin(self, parts: Parts) -> None:
        self.parts = parts

    def turn(self) -> None:
        self.turns += 1

    def item(self) -> Any:
        return SimpleNamespace(index=self.items, image_ids=("x",))

    def take(self) -> Any:
        item, self.items = self.item(), self.items + 1
        return item

    def ended(self, task: Any, result: Any) -> None:
        if not hasattr(task, "index"):
            self.heldout.evaluations.done(task, [], {})

    def tend_actors(self) -> None:
        pass

    def learned(self, learning: Future[StepResult]) -> None:
        self.recorded.append(learning.result().version)

    def advance(self) -> bool:
        self.heldout.evaluations.completed()
        return len(self.heldout.evaluations) == 0

    def finish(self) -> Future[State]:
        done: Future[State] = Future()
        done.set_result(self)
        return done


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    made: list[Any] = []

    def keep(cls: type) -> Any:
        def make(*args: Any) -> Any:
            made.append(cls(*args))
            return made[-1]

        return make

    monkeypatch.setattr(driver, "RunState", keep(State))
    monkeypatch.setattr(driver, "Topology", keep(Parts))

    def train(**config: Any) -> tuple[State, Parts]:
        result = driver.train(RunConfig(model=tmp_path, **config), tmp_path)
        assert result is made[1]
        return made[1], made[0]

    return train


def test_a_step_counts_as_done_only_when_it_has_been_recorded(run: Any) -> None:
    state, _ = run(iterations=3)
    assert state.recorded == [1, 2, 3]


def test_evaluations_go_on_beside_rollouts_and_the_run_waits_for_the_last(run: Any) -> None:
    state, parts = run(iterations=1)
    assert parts.rolled and len(state.heldout.evaluations) == 0


def test_each_call_that_ends_is_in_the_timeline_and_each_turn_of_the_loop_is_told(run: Any) -> None:
    state, parts = run(iterations=3)
    assert state.turns == parts.looks > 1
    ended = [call.index for call, result in state.timed if hasattr(call, "index") and result == "result"]
    assert sorted(ended) == parts.rolled[: len(ended)] and len(ended) > 1


def test_a_backlog_of_evaluations_holds_the_next_step_back(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = State.begin

    def behind(self: State, parts: Parts) -> None:
        begin(self, parts)
        self.heldout.backlog = driver.MAX_EVALUATIONS
        original = self.advance
        self.heldout.advance = lambda: (setattr(self.heldout, "backlog", 0), original())[1]

    monkeypatch.setattr(State, "begin", behind)
    state, parts = run(iterations=1)
    assert parts.learning.waited[0] is True and state.recorded == [1]


def test_who_evaluates_is_looked_up_once_a_turn_however_many_slots_are_free(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at every call: for each of a thousand free slots anew, a turn took longer than the calls."""
    asked: list[int] = []
    original = Parts.evaluating

    def counted(self: Parts) -> set[int]:
        asked.append(self.looks)
        return original(self)

    monkeypatch.setattr(Parts, "evaluating", counted)
    monkeypatch.setattr(Parts, "evaluate", lambda self, actor, part, known: self.actors.calls.update({"part": part}))
    monkeypatch.setattr(Actors, "free", lambda self: [0] * (100 - len(self.calls)))
    _, parts = run(iterations=2)
    assert parts.looks and len(asked) == len(set(asked)) <= parts.looks + 1


@pytest.mark.parametrize("waits_for", ["begin again", "answer", "store"])
def test_a_first_signal_ends_a_run_in_whatever_the_driver_waits_for(
    run: Any, monkeypatch: pytest.MonkeyPatch, waits_for: str
) -> None:
    """The learner starts again, an actor's answer does not come, the store is away: each takes minutes."""
    asked_at: list[float] = []

    def wait_for_ever(self: Any, *_: Any) -> Any:
        state = made[-1]

        def ask() -> None:
            asked_at.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Timer(0.1, ask).start()
        if waits_for == "answer":
            never.wait(30)
        return state.interrupts.beside(lambda: never.wait(30))

    never, made = threading.Event(), list[State]()
    begin = State.begin

    def begun(self: State, parts: Parts) -> None:
        begin(self, parts)
        made.append(self)
        self.interrupts.defer()
        if waits_for == "store":
            parts.stream.unsettled = wait_for_ever

    monkeypatch.setattr(State, "begin", begun)
    if waits_for == "begin again":
        monkeypatch.setattr(State, "learned", wait_for_ever)
    elif waits_for == "answer":
        monkeypatch.setattr(Actors, "take", wait_for_ever)
    monkeypatch.setattr(State, "__enter__", lambda self: (self.interrupts.__enter__(), self)[1])
    monkeypatch.setattr(State, "__exit__", lambda self, *error: self.interrupts.__exit__(*error))
    with pytest.raises(Interrupted, match="stopped after iteration .; go on with: restorl train --resume"):
        run(iterations=3)
    never.set()
    assert time.monotonic() - asked_at[0] < 2 and "go on with" in made[0].notes[-1]
