"""One command that begins a run, goes on with it after any end, and does nothing once it is complete."""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import resuming
from cluster.cli.app import app
from cluster.files import FINISHED
from cluster.run.folder import finished_after
from cluster.run.folder_lock import locked
from cluster.run.state import RunState
from tests.cluster.config.test_resume import OURS, config_of

RECIPE = (str(OURS), "model=models/demo")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(iterations, whether it resumed) of each training, which enters the run folder as the driver does."""
    calls: list[tuple[int, bool]] = []

    def train(config: Any, folder: Path, resume: bool) -> Any:
        with RunState(config, folder, resume):
            calls.append((config.iterations, resume))
        return SimpleNamespace(base={}, rl={}, iterations=1, seconds=1.0, peak_memory_mb=1.0, report=folder)

    fake = SimpleNamespace(train=train)
    monkeypatch.setitem(sys.modules, "cluster.run.driver", fake)
    monkeypatch.setattr("cluster.run.driver", fake, raising=False)
    return calls


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["train", *map(str, words), "--resume-if-there"])


def test_the_same_command_begins_a_run_and_then_goes_on_with_it(trained: list[Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for _ in range(2):
        result = run(*RECIPE, "iterations=7", "--run", folder)
        assert result.exit_code == 0, result.output
    assert trained == [(7, False), (7, True)]
    result = run("--run", folder, "iterations=9")  # by its own recipe
    assert result.exit_code == 0 and trained[2] == (9, True)
    assert json.loads((folder / "run.json").read_text())["run_id"] and (folder / "config.yaml.1").exists()


def test_a_recipe_that_the_run_cannot_take_is_refused_by_the_rules_of_resume(
    trained: list[Any], tmp_path: Path
) -> None:
    run(*RECIPE, "--run", tmp_path / "run")
    result = run(*RECIPE, "seed=1", "--run", tmp_path / "run")
    assert result.exit_code == 2 and "the order of the work and its noise follow from it" in result.output
    assert len(trained) == 1


def test_a_complete_run_is_told_and_nothing_starts_unless_more_iterations_are_wanted(
    trained: list[Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run(*RECIPE, "iterations=7", "--run", folder)
    found = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(found | {FINISHED: 7}))
    result = run(*RECIPE, "iterations=7", "--run", folder)
    assert (result.exit_code, len(trained)) == (0, 1)
    assert "the run is complete, after 7 iterations; nothing is started" in " ".join(result.output.split())
    assert run(*RECIPE, "iterations=8", "--run", folder).exit_code == 0 and trained[1] == (8, True)


@pytest.mark.parametrize(
    ("finished", "fails", "complete"), [(False, False, None), (True, True, None), (True, False, 7)]
)
def test_only_a_run_that_came_to_its_end_is_complete(
    tmp_path: Path, finished: bool, fails: bool, complete: int | None
) -> None:
    with suppress(RuntimeError), RunState(config_of(), tmp_path / "run", resume=False) as state:
        state.parts = SimpleNamespace(version=7, learning=SimpleNamespace(epoch=0))  # type: ignore[assignment]
        state.finished = finished
        if fails:
            raise RuntimeError("while its report was written")
    assert finished_after(tmp_path / "run") == complete


def test_the_process_that_is_replaced_is_waited_for_and_not_for_ever(
    trained: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, looks = tmp_path / "run", list[float]()
    with locked(folder) as lock:
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda s: (looks.append(s), lock._file.close()))
        monkeypatch.setattr(resuming, "time", clock)
        assert run(*RECIPE, "--run", folder).exit_code == 0 and len(looks) == 1 and len(trained) == 1
    with locked(folder):
        monkeypatch.setattr(resuming, "LOCK_WAIT_S", -1.0)
        result = run(*RECIPE, "--run", folder)
    assert result.exit_code == 2 and "another process uses this run folder" in result.output and len(looks) == 1


def test_a_run_that_the_replaced_process_completes_meanwhile_is_told_and_nothing_starts(
    trained: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run(*RECIPE, "iterations=7", "--run", folder)
    found = json.loads((folder / "run.json").read_text())
    with locked(folder) as lock:

        def its_end(seconds: float) -> None:
            (folder / "run.json").write_text(json.dumps(found | {FINISHED: 7}))
            lock._file.close()

        monkeypatch.setattr(resuming, "time", SimpleNamespace(monotonic=time.monotonic, sleep=its_end))
        result = run(*RECIPE, "iterations=7", "--run", folder)
    assert (result.exit_code, len(trained)) == (0, 1), result.output
    assert "the run is complete, after 7 iterations; nothing is started" in " ".join(result.output.split())


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_that_another_process_begins_or_gives_up_while_this_one_opens_its_data_is_looked_at_anew(
    trained: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """As two pods of one job do that start at once."""
    folder, driver, opened = tmp_path / "run", sys.modules["cluster.run.driver"], list[bool]()
    if not begun:
        run(*RECIPE, "--run", folder)
        trained.clear()
    original, kept = driver.train, (folder / "run.json").read_text() if not begun else None

    def train(config: Any, folder: Path, resume: bool) -> Any:
        if not opened:  # while its data was opened the other did
            if kept is not None:
                (folder / "run.json").unlink()
            else:
                original(config, folder, False)
        opened.append(resume)
        return original(config, folder, resume)

    monkeypatch.setattr(driver, "train", train)
    monkeypatch.setattr(resuming, "LOOK_S", 0.0)
    result = run(*RECIPE, "--run", folder)
    assert result.exit_code == 0, result.output
    assert opened == [not begun, begun]


def test_a_folder_in_use_is_not_opened_and_checked_in_vain(
    trained: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tmp_path / "run", list[float]()
    driver = sys.modules["cluster.run.driver"]
    original = driver.train
    monkeypatch.setattr(driver, "train", lambda *of: (asked.append(time.monotonic()), original(*of))[1])
    with locked(folder) as lock:
        looks = iter((lambda: None, lambda: None, lock._file.close))
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda s: next(looks)())
        monkeypatch.setattr(resuming, "time", clock)
        result = run(*RECIPE, "--run", folder)
    assert result.exit_code == 0 and len(asked) == 1
    assert "uses the folder; this one waits for that, 100 s at most" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("configs/demo.yaml",), "goes with --run FOLDER"),
        (("--run", "x", "--resume", "y"), "goes with --run FOLDER"),
        (("configs/demo.yaml", "--run", "x", "--single"), "and without --resume and --single"),
        (("--run", "/nowhere"), "/nowhere holds no run to resume: say CONFIG"),
        (("iterations=3", "--run", "/nowhere"), "/nowhere holds no run to resume: say CONFIG"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: tuple[str, ...], said: str) -> None:
    result = run(*words)
    assert result.exit_code == 2 and said in " ".join(result.output.split())
