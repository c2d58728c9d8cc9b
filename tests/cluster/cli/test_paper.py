"""`restorl paper run` and `table`, from words on the command line to the last line that is printed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cluster.cli.app as cli
import cluster.cli.paper as paper
from cluster.paper.results import CELL_FILE
from cluster.paper.scales import SCALES
from cluster.paper.side_by_side import Outcome, Task
from cluster.report.run_audit import audit_run
from tests.cluster.paper.places import SMALL, name_model, write_model, write_sets
from tests.system.ray_nodes import ray_head

LIMIT_S = 300


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sets(tmp_path_factory.mktemp("paper"), ("lol_v2_real", "lol_v2_synthetic"))


@pytest.fixture
def models(tmp_path: Path) -> Path:
    name_model(tmp_path / "models" / "diffbir", "diffbir")
    return tmp_path / "models"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """What would have been started; every second of them fails."""
    found: list[Task] = []

    def instead(tasks: Sequence[Task], *_: Any) -> list[Outcome]:
        found.extend(tasks)
        return [Outcome(t.label, t.log, "" if i % 2 else "no more memory; lower --batch") for i, t in enumerate(tasks)]

    monkeypatch.setattr("cluster.paper.side_by_side.side_by_side", instead)
    return found


def words(data: Path | str, models: Path, out: Path) -> list[object]:
    return ["--data", data, "--models", models, "--out", out, "--scale", "tiny", *SMALL]


def test_a_plan_is_printed_and_nothing_started(data: Path, models: Path, tmp_path: Path, started: list[Task]) -> None:
    out = tmp_path / "out"
    result = run("paper", "run", "6", *words(data, models, out), "--dry-run")
    assert result.exit_code == 0, result
    assert "Table 6: Ablations" in result.stdout and "scale tiny: 2 iterations" in result.stdout
    assert "22 cells: 0 finished, 0 missing, 22 to measure in 22 jobs (0 fine-tunings, 20 trainings)" in result.stdout
    assert "no estimate of 22 jobs" in result.stdout  # on CPUs
    assert "published set has 100: figures are not comparable" in result.stderr
    assert started == [] and not out.exists()


def test_what_is_missing_ends_it_before_anything_runs_unless_it_is_to_be_skipped(
    data: Path, models: Path, tmp_path: Path, started: list[Task]
) -> None:
    result = run("paper", "run", "1", *words(data, models, tmp_path / "out"))
    assert result.exit_code == 2 and started == [], result
    assert "missing for 3 cells, such as rap.lol_v2_real.base.s0.lol_v2_real: no model folder of RAP" in result.stdout
    assert "42 cells lack what is named above" in result.stderr
    skipped = run("paper", "run", "1", *words(data, models, tmp_path / "out"), "--skip-missing")
    assert len(started) == 6 and "42 cells were left out" in skipped.stdout


def test_a_failed_job_is_named_at_the_end_with_its_cause_and_its_log(
    data: Path, models: Path, tmp_path: Path, started: list[Task]
) -> None:
    out = tmp_path / "out"
    result = run("paper", "run", "1", *words(data, models, out), "--model", "diffbir", "--arm", "base")
    assert result.exit_code == 1, result
    assert "1 of 2 jobs failed; the same command tries them again:" in result.stdout
    log = out / "jobs" / "diffbir.lol_v2_real.base.s0" / "log.txt"
    assert f"  diffbir.lol_v2_real.base.s0: no more memory; lower --batch (log: {log})" in result.stdout
    job = json.loads((log.parent / "job.json").read_text())["job"]
    assert job["label"] == started[0].label and started[0].command[-2:] == [
        str(log.parent / "job.json"),
        "--with-starter",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "7"], "no table '7'; choose one of 1, 2"),
        (["run", "1", "data"], "data: behind the table stand KEY=VALUE"),
        (["run", "1", "--scale", "huge"], "--scale huge: choose one of full"),
        (["run", "1", "--model", "sd3"], "--model sd3: choose one of diffbir"),
        (["run", "1", "--arm", "none"], "no arm 'none'; choose one of base"),
        (["run", "1", "--data", "/nowhere"], "--data: /nowhere is no folder"),
        (["run", "1", "--lpips", "/nowhere"], "/nowhere"),
        (["run", "1", "--scorer", "nothing"], "no scorer named 'nothing'"),
        (["table", "1", "--out", "/nowhere"], "/nowhere holds no finished cell"),
        (["table", "1", "--format", "word"], "--format word: choose one of markdown, latex, csv, json"),
        (["job", "/nowhere/job.json"], "is no job of a table"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments: list[str], said: str) -> None:
    result = run("paper", *arguments)
    assert result.exit_code == 2, result
    (line,) = result.stderr.strip().splitlines()
    assert said in line and "Traceback" not in result.output


def start(arguments: Sequence[object], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT
        )


def finished(out: Path) -> dict[str, int]:
    """Cell -> when its result was written, in nanoseconds."""
    return {file.parent.name: file.stat().st_mtime_ns for file in out.glob(f"cells/*/{CELL_FILE}")}


@pytest.mark.slow
def test_a_table_killed_in_between_goes_on_and_repeats_no_finished_cell(data: Path, tmp_path: Path) -> None:
    """Real processes, kill -9, one job that can't succeed, and the table in all its forms."""
    out, models = tmp_path / "out", write_model(tmp_path / "models" / "diffbir").parent
    chosen = [w for arm in ("base", "ours", "clip_iqa_reward", "iterated") for w in ("--arm", arm)]
    here = words(f"lol_v2_real={data / 'lol_v2_real'}", models, out)
    command = ["paper", "run", "6", *here, *chosen, "--skip-missing", "--jobs", "2"]
    process = start(command, tmp_path / "first.log")
    ends = time.monotonic() + LIMIT_S
    while not finished(out):
        assert process.poll() is None and time.monotonic() < ends, (tmp_path / "first.log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    before = finished(out)
    broken = out / "runs" / "diffbir.lol_v2_real.clip_iqa_reward.s0"
    broken.parent.mkdir(exist_ok=True)
    if not broken.exists():
        broken.write_text("a file in the place of the run's folder")
    again = start(command, tmp_path / "second.log")
    assert again.wait(LIMIT_S) == (1 if broken.is_file() else 0), (tmp_path / "second.log").read_text()
    after = finished(out)
    assert before.items() <= after.items() and len(after) == (3 if broken.is_file() else 4)
    if broken.is_file():
        assert f"{broken.name}: " in (tmp_path / "second.log").read_text()
        broken.unlink()
        assert start(command, tmp_path / "third.log").wait(LIMIT_S) == 0, (tmp_path / "third.log").read_text()
        assert after.items() <= finished(out).items() and len(finished(out)) == 4
    folder = tmp_path / "tables"
    made = run("paper", "table", "6", "--out", out, "--write", folder)
    assert made.exit_code == 0 and {p.suffix for p in folder.iterdir()} == {".md", ".tex", ".csv", ".json"}
    page = (folder / "table6.md").read_text()
    assert "| Original |" in page and "| with Iter. RL |" in page and "18 of 22 cells are missing" in page
    assert "n=2 of 100 published" in page


@pytest.mark.cluster
def test_on_a_cluster_that_runs_already_the_whole_system_trains_and_measures(data: Path, tmp_path: Path) -> None:
    out, models = tmp_path / "out", write_model(tmp_path / "models" / "diffbir").parent
    small = (*SCALES["tiny"].words, *SMALL, "ranks.num_cpus=0.2", "actors.num_cpus=0.2", "reward.num_cpus=0.2")
    (tmp_path / "head").mkdir()
    with ray_head(tmp_path / "head") as cluster:
        where = (f"cluster.address={cluster.address}", "cluster.auth=disabled")
        command = ["paper", "run", "1", "--data", data, "--models", models, "--out", out, "--model", "diffbir"]
        command += ["--arm", "base", "--arm", "ours", "--jobs", "2", *small, "sampler.steps=2", *where]
        done = subprocess.run(
            [sys.executable, "-m", "cluster.cli", *map(str, command)],
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    logs = "".join(log.read_text() for log in out.glob("jobs/*/log.txt"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert len(finished(out)) == 4 and "no estimate" in done.stdout
    assert audit_run(out / "runs" / "diffbir.lol_v2_real.ours.s0")[0].ok


def test_a_command_leaves_the_environment_of_threads_to_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[Any] = []
    monkeypatch.setattr("cluster.paper.side_by_side.side_by_side", lambda *arguments: given.append(arguments) or [])
    from cluster.paper.cells import Folders

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    paper._run([], Folders(tmp_path), 2, 1.0)
    monkeypatch.delenv("OMP_NUM_THREADS")
    paper._run([], Folders(tmp_path), 2, 1.0)
    threads = [environment["OMP_NUM_THREADS"] for *_, environment in given]
    assert threads == ["7", str(max(1, (os.cpu_count() or 1) // 2))]
