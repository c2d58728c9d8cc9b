"""`restorl status`: what it shows, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import cluster.cli.app as cli
import cluster.cli.status as module
from cluster.cli.errors import USER_MISTAKE
from cluster.cli.status_text import MOST_PROCESSES, render, sparkline
from cluster.report.duration import brief
from cluster.report.status import Checkpoint, Course, HeldOutFigure, Process, Status
from tests.cluster.report.synthetic_run import make_run
from tests.cluster.report.test_status import beat

FULL = Status(
    folder="runs/demo",
    name="demo",
    run_id="demo-1",
    state="running",
    why="",
    iteration=12,
    iterations=40,
    left="about 4 min left",
    seconds=130.0,
    silent_s=3.0,
    phases={"rollout": 4.0, "learn": 3.2},
    iteration_s=8.7,
    overlap=0.8,
    overlap_of=7,
    waiting=6,
    waiting_mb=12.5,
    rolling=4,
    evaluation="iteration 10 (now): 3 parts left",
    staleness_mean=0.5,
    staleness_max=1.0,
    reward=Course(3.0, 3.25, (3.0, 3.1, 3.25)),
    terms={"deqa": Course(2.5, 2.75, (2.5, 2.75))},
    heldout_of=10,
    heldout=(HeldOutFigure("psnr", 18.0, 24.0, 24.5, 24.6), HeldOutFigure("piqe", None, 30.0, None, None)),
    dropped={"stale": 4},
    quarantined={"picture": 2},
    failed_calls={"process": 1},
    not_written={"a strip": 1},
    processes=tuple(Process("actor", f"actor {n}", f"n{n} pid 7", "rollout for 3 s", 1.0) for n in range(20)),
    checkpoint=Checkpoint(12, 5.0),
    alarms=("iteration 10: the reward rises while psnr falls",),
    clocks=("the clock of far is off",),
    damage=("metrics.jsonl:4: not JSON",),
)


def text_of(status: Status, plain: bool = False) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(render(status, plain))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["status", *map(str, arguments)])


def test_all_that_is_known_is_shown() -> None:
    text = text_of(FULL)
    for shown in (
        *("demo", "running", "iteration 12 of 40", "about 4 min left", "2 min 10 s in all", "checkpoint 12, 5.0 s ago"),
        *("3.2500 (+0.2500)", "▁", "█", "deqa", "0.50, at most 1", "8.7 s: rollout 4.0 s  learn 3.2 s"),
        *(
            "80 % of the learner's work beside rollouts (iteration 7)",
            "4 groups being rolled out, 6 wait for the learner",
        ),
        *("12.5 MB in the store", "iteration 10 (now): 3 parts left", "picture 2", "stale 4", "process 1", "a strip 1"),
        *("held out, iteration 10", "24.5000", "24.6000", "+0.5000", "psnr falls", "far is off", "not JSON"),
        *("actor 0", "n0 pid 7", "rollout for 3 s", f"and {20 - MOST_PROCESSES} more: --json has all"),
    ):
        assert shown in text, shown
    assert f"actor {MOST_PROCESSES}" not in text


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text_of(FULL, plain=True).encode("ascii")


def test_markup_in_what_a_run_says_is_text() -> None:
    assert "[red]x[/red] [" in text_of(replace(FULL, why="[red]x[/red] ["))


def test_a_sparkline_goes_from_the_lowest_to_the_highest() -> None:
    assert sparkline((0.0, 0.5, 1.0)) == "▁▅█" and sparkline((2.0, 2.0)) == "▄▄" and sparkline(()) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (200, "3 min 20 s"), (59.7, "1 min"), (7500, "2 h 5 min"), (250_000, "2.9 days")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert brief(seconds) == text


def test_a_run_is_shown_or_given_to_programs_and_trouble_is_an_exit_status(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", images=3, iterations=3)
    shown = call(folder)
    assert shown.exit_code == 0 and "demo <rain>" in shown.stdout and "stopped" in shown.stdout
    beat(folder, "running", ago_s=500)
    found = call(folder, "--json")
    assert found.exit_code == 1 and json.loads(found.stdout)["state"] == "dead"
    nothing = call(tmp_path)
    assert nothing.exit_code == USER_MISTAKE and "give the folder of a run" in nothing.stderr


def test_watching_looks_again_until_ctrl_c_which_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", images=3, iterations=3)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"kind": "train", "iteration": 4}\n')
        if len(looks) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=sleep))
    watched = call(folder, "--watch", "--every", "0.5", "--json")
    assert watched.exit_code == 0 and looks == [0.5] * 3
    assert [json.loads(line)["iteration"] for line in watched.stdout.splitlines()] == [3, 3, 4]
    looks.clear()
    assert call(folder, "--watch").stdout.count("demo <rain>") == 3


def test_watching_ends_as_sigterm_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run", images=3, iterations=3)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    assert call(folder, "--watch").exit_code == 143


def test_a_look_takes_no_time_though_a_run_has_many_iterations(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", images=3, iterations=3)
    line = (folder / "metrics.jsonl").read_text().splitlines()[1]
    with (folder / "metrics.jsonl").open("a") as file:
        for number in range(4, 5000):
            file.write(line.replace('"iteration": 1', f'"iteration": {number}') + "\n")
    from cluster.report.status import Watched

    watched = Watched(folder)
    assert watched.status().iteration == 4999
    began = time.process_time()
    for _ in range(10):
        watched.status()
    assert time.process_time() - began < 0.5  # each from the start would take ten times as long
