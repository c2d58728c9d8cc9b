"""The start and the end of a run in its folder: what is written down, and what whoever looks is told."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actors.work import Quarantined
from cluster.config.recipe import RunConfig
from cluster.run.failures import Failure, Fatal, Kind, classify
from cluster.run.learning import StepResult
from cluster.run.state import Interrupted, RunState
from learner import checkpoint
from tests.cluster.run.stand_ins import ended_with, with_stand_ins
from trajectories.errors import StaleEpoch


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunState]:
    monkeypatch.setattr("cluster.run.folder.save_config", lambda *_: None)  # it takes 0.2 s
    with RunState(RunConfig(model=tmp_path), tmp_path, resume=False) as made:
        yield with_stand_ins(made)


def test_a_start_that_failed_leaves_no_run_behind_so_that_the_same_command_may_try_again(tmp_path: Path) -> None:
    config = RunConfig(model=tmp_path)
    for _ in range(2):
        with pytest.raises(OSError, match="no Ray"), RunState(config, tmp_path / "run", resume=False):
            raise OSError("no Ray")
    with pytest.raises(KeyboardInterrupt), RunState(config, tmp_path / "run", resume=False):
        raise KeyboardInterrupt  # which says how to go on
    with RunState(config, tmp_path / "run", resume=True):
        pass


class Full:
    """A file on a full disk."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def write(self, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_metrics_that_a_full_disk_refuses_end_the_run_with_the_file_the_cause_and_what_to_do(tmp_path: Path) -> None:
    said = r"^the driver: .*No space left on device: '.*metrics\.jsonl'; free space there, then go on with --resume$"
    with pytest.raises(Fatal, match=said), RunState(RunConfig(model=tmp_path), tmp_path / "run", resume=False) as state:
        with_stand_ins(state)
        state.log._lines._file = Full(state.log._lines._file)  # type: ignore[assignment]
        state.learned(ended_with(step=StepResult(1, {"reward_mean": 1.0})))
    with RunState(RunConfig(model=tmp_path), tmp_path / "run", resume=True):  # its lock is free
        pass


def test_a_quarantine_that_a_read_only_file_system_refuses_ends_the_run_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run" / "quarantine.jsonl").mkdir(parents=True)
    with (
        pytest.raises(Fatal, match=r"the driver: .*Is a directory: '.*quarantine\.jsonl'; put it right, then go on"),
        RunState(RunConfig(model=tmp_path), tmp_path / "run", resume=False) as state,
    ):
        with_stand_ins(state)._quarantine([Quarantined("g1", "picture", "cut off")])


def test_a_full_disk_at_the_end_does_not_hide_why_a_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(Fatal, match="loss is nan"), RunState(RunConfig(model=tmp_path), tmp_path, False) as state:
        with_stand_ins(state)
        monkeypatch.setattr(state.disk, "save", full)
        raise Fatal("the learner", Failure(Kind.FATAL, "diverged", "loss is nan"))
    with pytest.raises(Fatal, match="No space left"), RunState(RunConfig(model=tmp_path), tmp_path, True) as state:
        with_stand_ins(state)
        monkeypatch.setattr(state.disk, "save", full)


def test_a_system_s_error_before_anything_has_begun_advises_to_try_again_and_not_to_resume(tmp_path: Path) -> None:
    with (
        pytest.raises(Fatal, match="free space there, then give the same command again$"),
        RunState(RunConfig(model=tmp_path), tmp_path / "run", resume=False),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "ray_token")
    with RunState(RunConfig(model=tmp_path), tmp_path / "run", resume=False):
        pass


def test_what_ends_a_start_advises_to_start_again_too(tmp_path: Path) -> None:
    """Where --resume would say that there is no run."""
    short = classify(MemoryError("no room"))
    with (
        pytest.raises(Fatal, match="^the learner: no room; lower .* then give the same command again$"),
        RunState(RunConfig(model=tmp_path), tmp_path / "run", resume=False),
    ):
        raise Fatal("the learner", short)
    with (
        pytest.raises(Fatal, match="go on with --resume$"),
        RunState(RunConfig(model=tmp_path), tmp_path / "run", resume=False) as state,
    ):
        with_stand_ins(state)
        raise Fatal("the learner", short)


@pytest.mark.parametrize(
    ("error", "ending"),
    [(None, "finished"), (Interrupted(Path("runs/a"), 3, signal.SIGINT), "stopped"), (RuntimeError("x"), "failed")],
)
def test_how_a_run_ended_is_told_in_its_folder_and_to_its_trackers(
    error: BaseException | None, ending: str, tmp_path: Path
) -> None:
    with suppress(Interrupted, RuntimeError), RunState(RunConfig(model=tmp_path), tmp_path, resume=False) as state:
        with_stand_ins(state)
        if error is not None:
            raise error
    assert json.loads((tmp_path / "live.json").read_text())["state"] == ending
    assert state.disk.trackers.how == ending


def test_an_end_that_cannot_be_written_down_is_told_as_a_failure_to_whoever_looks_and_to_trackers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run.json")

    with pytest.raises(Fatal, match="No space left"), RunState(RunConfig(model=tmp_path), tmp_path, False) as state:
        with_stand_ins(state)
        monkeypatch.setattr(state.disk, "save", full)
    live = json.loads((tmp_path / "live.json").read_text())
    assert live["state"] == state.disk.trackers.how == "failed" and "No space left" in live["doing"]


@pytest.mark.parametrize(("lost", "how"), [("overtaken", "taken over"), ("removed", "failed"), ("unread", "failed")])
def test_trackers_are_not_told_that_a_run_finished_which_this_process_had_to_leave(
    lost: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on in another process, or its folder is gone, or can't be looked at."""

    def unread() -> bool:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    place, reason = tmp_path / "run", "epoch" if lost == "overtaken" else "folder"
    with pytest.raises(Fatal), RunState(RunConfig(model=tmp_path), place, resume=False) as state:
        with_stand_ins(state)
        if lost == "removed":
            place.rename(tmp_path / "elsewhere")
        if lost == "unread":
            monkeypatch.setattr(state.disk, "guards", unread)
        raise Fatal("the driver", Failure(Kind.FATAL, reason, "not this process's any more"))
    assert state.disk.trackers.how == how


def test_a_driver_that_does_not_know_yet_that_it_was_taken_over_does_not_beat_over_its_successor(
    state: RunState, tmp_path: Path
) -> None:
    state.parts.learning.epoch = 1
    state.pulse._beat()
    (tmp_path / "live.json").write_text('{"state": "running", "pid": 1}')
    checkpoint.take_over(tmp_path / "checkpoints", lambda: 2)
    state.pulse._beat()
    assert json.loads((tmp_path / "live.json").read_text())["pid"] == 1
    state.parts.learning.epoch = 2
    state.pulse._beat()
    assert json.loads((tmp_path / "live.json").read_text())["pid"] == os.getpid()


def test_a_run_that_was_taken_over_leaves_the_sign_of_life_to_its_successor(tmp_path: Path) -> None:
    taken = classify(StaleEpoch("this process was replaced"))
    with pytest.raises(Fatal), RunState(RunConfig(model=tmp_path), tmp_path, resume=False) as state:
        with_stand_ins(state)
        (tmp_path / "live.json").write_text('{"state": "running", "pid": 1}')
        raise Fatal("the learner", taken)
    assert json.loads((tmp_path / "live.json").read_text()) == {"state": "running", "pid": 1}


def test_what_was_not_written_in_earlier_parts_of_a_run_is_told_too(state: RunState, tmp_path: Path) -> None:
    state.identity["not_written"] = {"a strip": 2}
    state.looking.lack("a strip", OSError("full"))
    assert state._totals(state.began)["not_written"] == {"a strip": 3}


def test_a_driver_that_was_replaced_leaves_its_successors_run_json(tmp_path: Path) -> None:
    with pytest.raises(Fatal), RunState(RunConfig(model=tmp_path), tmp_path, resume=False):
        (tmp_path / "run.json").write_text("{}")
        raise Fatal("the driver", Failure(Kind.FATAL, "epoch", "the run goes on in another process"))
    assert (tmp_path / "run.json").read_text() == "{}"
