"""The parts of a run that its driver counts on, without a cluster."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from actors.work import WorkSequence
from cluster.run.evaluations import Evaluations
from cluster.run.failures import Patience
from cluster.run.interrupts import Interrupts
from cluster.run.learning import StepResult
from cluster.run.pace import Pace
from cluster.run.state import RunState
from cluster.run.work_queue import WorkQueue
from restoration.spans import SpanLog


class Metrics:
    """Takes every figure."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Learning:
    epoch = 0

    def __init__(self) -> None:
        self.patience, self.recovered, self.republished = Patience("the learner", 2, pause_s=0.0), 0, 0
        self.spans, self.group = SpanLog(), None

    def begin_again(self, pause_s: float) -> Future[None]:
        self.recovered += 1
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def recorded_metrics(self) -> dict[str, float]:
        return {"reward_mean": 2.5}

    def publish_again(self) -> None:
        self.republished += 1


def with_stand_ins(made: RunState) -> RunState:
    """As after `begin`."""
    made.log._tensorboard = False
    made.iteration_began, made.interrupts = 0.0, Interrupts()
    made.notes = []  # type: ignore[attr-defined]
    told = SimpleNamespace(note=made.notes.append, update=lambda *_, **__: None, beside=[])
    told.note_beside = told.beside.append
    made.display = told  # type: ignore[assignment]
    made.pace = Pace(0.0, ahead=True)
    made.work = WorkQueue(WorkSequence(["a", "b"], 2, seed=0))
    evaluations = Evaluations(["x", "y"], [["x", "y"]])
    heldout = SimpleNamespace(evaluations=evaluations, learned=lambda v: None, rewinds=[], parts_left=lambda version: 4)
    heldout.failed = lambda part, failure: heldout.rewinds.append(("failed", part, failure))
    heldout.rewind = lambda version: heldout.rewinds.append(version)
    made.heldout = heldout  # type: ignore[assignment]
    made.parts = SimpleNamespace(  # type: ignore[assignment]
        metrics=Metrics(),
        learning=Learning(),
        version=1,
        rolling=set,
        stream=SimpleNamespace(depth=lambda: SimpleNamespace(entries=0, nbytes=0), memory=lambda: (1, 2)),
        actors=SimpleNamespace(wanted=1, members={}, calls={}, step_back=lambda: None),
    )
    return made


def ended_with(error: Exception | None = None, step: StepResult | None = None) -> Future[StepResult | None]:
    done: Future[StepResult | None] = Future()
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(step)
    return done
