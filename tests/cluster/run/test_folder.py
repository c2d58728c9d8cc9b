"""A run folder is written to by the process that holds its lock, and by nobody else."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.work import Quarantined
from cluster.config.configure import ConfigError, load_config
from cluster.config.recipe import DataSettings, RunConfig
from cluster.models import load_run_config
from cluster.run import single
from cluster.run.failures import Fatal
from cluster.run.folder import RunFolder
from cluster.run.folder_lock import FolderInUse, locked
from cluster.run.looking import ForLooking
from learner import checkpoint
from tests.cluster.config.test_resume import OURS


@pytest.fixture
def config() -> RunConfig:
    return load_config(RunConfig, OURS, ["model=models/demo"])


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> Iterator[RunFolder]:
    """A run that is running."""
    with RunFolder(config, tmp_path / "run", False, ForLooking(print)) as made:
        yield made


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_with_figures_of_another_run_is_refused(config: RunConfig, tmp_path: Path) -> None:
    """As `--single` leaves it when it is killed."""
    (tmp_path / "evaluation").mkdir()
    again = RunFolder(config, tmp_path, False, ForLooking(print))
    with pytest.raises(ConfigError, match="holds figures of another run; give another folder"), again:
        raise AssertionError("entered")


def test_a_second_resume_of_a_running_run_is_refused_and_has_written_nothing(run: RunFolder) -> None:
    """Else its overrides are the run's configuration, and the line that the first writes is cut."""
    (run.path / "metrics.jsonl").write_text('{"kind": "train", "itera')  # the first is writing it
    before = content(run.path)
    other = load_run_config(run.path, ("iterations=999",))
    with pytest.raises(FolderInUse), RunFolder(other, run.path, True, ForLooking(print)):
        raise AssertionError("entered")
    assert content(run.path) == before


def test_a_second_start_in_the_folder_of_one_that_has_not_written_yet_is_refused_and_has_written_nothing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light_single(monkeypatch)
    with locked(tmp_path):
        before = content(tmp_path)
        with pytest.raises(FolderInUse), RunFolder(config, tmp_path, False, ForLooking(print)):
            raise AssertionError("entered")
        with pytest.raises(FolderInUse):
            single.train_single(config, tmp_path)
        assert content(tmp_path) == before


def test_two_runs_of_a_single_process_are_two_for_trackers_too(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def trackers_of(config: RunConfig, folder: Path, run_id: str, looking: ForLooking) -> None:
        told.append(run_id)
        raise RuntimeError("far enough")

    light_single(monkeypatch)
    monkeypatch.setattr(single, "trackers_of", trackers_of)
    named = config.model_copy(update={"name": "rain's/first try"})
    for name in ("a", "b"):
        with pytest.raises(RuntimeError, match="far enough"):
            single.train_single(named, tmp_path / name)
    assert len(set(told)) == 2
    assert all(re.fullmatch("rain-s-first-try-[0-9a-f]{8}-single", run_id) for run_id in told), told


def light_single(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train_single` comes to its folder without a model."""
    monkeypatch.setattr(single.torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(DataSettings, "open", lambda *_: SimpleNamespace(image_ids=["a"]))
    monkeypatch.setattr(single, "scores_of", lambda config: ({}, {}))
    for name in ("before_start", "method_of", "load", "Reference", "judges", "WorkSequence"):
        monkeypatch.setattr(single, name, lambda *_: {})


def test_a_run_that_another_process_began_meanwhile_is_not_written_over(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    original = RunFolder._require_fitting

    def begun_after_the_first_look(self: RunFolder) -> None:
        original(self)
        looks.append(len(looks))
        if len(looks) == 1:
            (tmp_path / "run.json").write_text("{}")

    monkeypatch.setattr(RunFolder, "_require_fitting", begun_after_the_first_look)
    with pytest.raises(ConfigError, match="already holds a run"), RunFolder(config, tmp_path, False, ForLooking(print)):
        raise AssertionError("entered")
    assert (tmp_path / "run.json").read_text() == "{}" and not (tmp_path / "config.yaml").exists()


def test_a_folder_that_is_no_run_is_not_even_locked(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"), RunFolder(config, tmp_path, True, ForLooking(print)):
        raise AssertionError("entered")
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_a_full_disk_ends_is_told_with_the_file_and_leaves_no_run(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "metrics.jsonl"))

    monkeypatch.setattr("cluster.run.folder.MetricsLog", full)
    with (
        pytest.raises(ConfigError, match=r"No space left on device: '.*metrics.jsonl'; free space there, then try"),
        RunFolder(config, tmp_path, False, ForLooking(print)),
    ):
        raise AssertionError("entered")
    monkeypatch.undo()
    with RunFolder(config, tmp_path, False, ForLooking(print)):  # the same command
        pass


def test_what_is_quarantined_is_known_after_a_kill_and_a_group_counts_once(
    config: RunConfig, tmp_path: Path, run: RunFolder
) -> None:
    first = [Quarantined("g1", "picture", "cut off"), Quarantined("g2", "picture", "cut off")]
    assert run.quarantine(first) == first and run.quarantine(first) == []
    with (run.path / "quarantine.jsonl").open("a") as file:
        file.write('{"what": "g3", "rea')  # killed while writing
    run._exits.close()  # as the kernel does: no totals were written
    with RunFolder(config, run.path, True, ForLooking(print)) as resumed:
        assert resumed.quarantined == {("g1", "picture"), ("g2", "picture")}
        third = Quarantined("g3", "picture", "cut off")
        assert resumed.quarantine([*first, third, third]) == [third]
    lines = [json.loads(line)["what"] for line in (run.path / "quarantine.jsonl").read_text().splitlines()]
    assert lines == ["g1", "g2", "g3"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("run.json", '{"run_id": "a"', "run.json is damaged.*put it back from a copy"),
        ("run.json", '{"seconds": 1}', "run.json is damaged.*run_id"),
        ("metrics.jsonl", "nonsense\n", "metrics.jsonl:1: not JSON.*remove the line"),
        ("metrics.jsonl", '{"kind": "train"}\n', "metrics.jsonl:1: it has no 'iteration'; remove the line"),
        ("quarantine.jsonl", "nonsense\n", "quarantine.jsonl:1: not JSON.*remove the line"),
        ("quarantine.jsonl", '{"reason": "a"}\n', "quarantine.jsonl:1: it has no 'what'; remove the line"),
    ],
)
def test_a_damaged_file_is_told_before_anything_starts(
    name: str, text: str, told: str, config: RunConfig, run: RunFolder
) -> None:
    run._exits.close()
    (run.path / name).write_text(text)
    before = (run.path / "config.yaml").stat()
    with pytest.raises(ConfigError, match=told), RunFolder(config, run.path, True, ForLooking(print)):
        raise AssertionError("entered")
    assert (run.path / "config.yaml").stat() == before


def test_a_driver_that_was_cut_off_while_another_took_the_run_over_writes_nothing_more(run: RunFolder) -> None:
    root = run.path / "checkpoints"
    mine = checkpoint.take_over(root, lambda: 1)
    run.require(mine)
    checkpoint.take_over(root, iter(range(1, 9)).__next__)
    with pytest.raises(Fatal, match="goes on in another process, in epoch 2; .* leave the run to that process"):
        run.require(mine)


def test_a_folder_that_is_removed_under_a_run_ends_it_and_is_not_made_again(run: RunFolder) -> None:
    shutil.rmtree(run.path)
    with pytest.raises(Fatal, match="was removed, or another folder put in its place.*put it back"):
        run.require(1)
    assert not run.path.exists()


def test_a_command_that_looks_at_a_running_run_changes_none_of_its_files(run: RunFolder, capsys: Any) -> None:
    from cluster.report.report import write_report

    run.log.append({"kind": "eval", "iteration": 0, "who": "base", "psnr": 20.0})
    before = content(run.path)
    write_report(run.path)
    after = content(run.path)
    assert {Path(p).name for p in after.keys() - before.keys()} == {"report.html"}
    assert {p: after[p] for p in before} == before
