"""The driver's loop with stand-ins for the parts and for the run folder."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config.recipe import RunConfig
from cluster.run import driver
from cluster.run.topology import StepResult


class Parts:
    """Its learner has the new version before the step is complete; a rollout finishes in between."""

    def __init__(self, *_: object) -> None:
        self.version = 0
        self.looks = 0

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def waiting_groups(self) -> int:
        return 0

    def free_actors(self, slots: int) -> list[Any]:
        return []

    def start_step(self) -> Future[StepResult]:
        self.version += 1
        self.looks = 0
        return Future()

    def wait(self, learning: Future[StepResult]) -> tuple[list[Any], bool]:
        self.looks += 1
        return (["rollout"], False) if self.looks == 1 else ([], True)

    def finish_roll(self, ref: Any) -> tuple[Any, Any]:
        return SimpleNamespace(index=0), SimpleNamespace(published=0)

    def finish_step(self, step: Future[StepResult]) -> StepResult:
        return StepResult(self.version, {}, {})


class State:
    def __init__(self, *_: object) -> None:
        self.run_id, self.interrupted, self.recorded = "run", False, list[int]()

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def learned(self, step: StepResult) -> None:
        self.recorded.append(step.version)

    def finish(self) -> State:
        return self

    def begin(self, parts: Parts) -> None: ...
    def rolled(self, report: Any) -> None: ...
    def evaluate_if_due(self) -> None: ...


def test_the_last_step_is_recorded_though_rollouts_finish_while_it_is_being_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "Topology", Parts)
    monkeypatch.setattr(driver, "RunState", State)
    monkeypatch.setattr(driver.Admission, "finished", lambda *_: None)
    summary: Any = driver.train(RunConfig(model=Path("unused"), iterations=3), Path("unused"))
    assert summary.recorded == [1, 2, 3]
