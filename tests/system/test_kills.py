"""Parts of a run are killed in every phase, with evaluations on: each trajectory counts once, nothing is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.report.records import read_metrics
from cluster.report.run_audit import audit_run
from tests.system.conftest import ROOT

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def sabotaged(workplace: Path, folder: Path, *words: str) -> str:
    command = [sys.executable, "-m", "tests.system.saboteur", str(workplace / "recipe.yaml"), str(folder), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def complete(folder: Path, iterations: int, groups: int = 4) -> None:
    report, _ = audit_run(folder)
    assert report.ok, report.render()
    assert report.consumed == iterations * groups and report.pending == 0
    assert report.published == report.consumed + sum(report.dropped.values())
    assert [r["iteration"] for r in read_metrics(folder, "train")] == list(range(1, iterations + 1))
    evaluations = [(r["iteration"], r["who"]) for r in read_metrics(folder, "eval")]
    assert sorted(evaluations) == sorted({(0, "base"), *((i, "now") for i in range(2, iterations + 1, 2))})
    assert (folder / "report.html").stat().st_size > 1000
    assert json.loads((folder / "run.json").read_text())["dropped"] == {}  # nothing was poison


@pytest.mark.parametrize(
    "kills",
    [
        ("start:rank", "start:actor", "rollout:actor", "rollout:reward", "rollout:store", "end:store", "end:actor"),
        ("step:rank", "step:actor", "evaluation:actor", "evaluation:reward", "end:rank"),
        ("publication:rank", "checkpoint:rank", "evaluation:store", "checkpoint:store", "start:reward"),
    ],
    ids=["start, rollout, end", "step, evaluation", "publication, checkpoint"],
)
def test_a_run_survives_kills_in_every_phase(workplace: Path, tmp_path: Path, kills: tuple[str, ...]) -> None:
    told = sabotaged(workplace, tmp_path / "run", *kills, "iterations=6", "source.max_staleness=1")
    for kill in kills:
        phase, victim = kill.split(":")
        assert f"SABOTAGE {phase}: {victim}" in told, told
    complete(tmp_path / "run", 6)


def test_six_actors_that_die_all_the_time_cost_a_run_nothing(workplace: Path, tmp_path: Path) -> None:
    kills = [
        f"{phase}:actor" for phase in ("start", "rollout", "step", "publication", "checkpoint", "evaluation", "end")
    ]
    kills += ["rollout:actor", "rollout:actor", "evaluation:actor", "step:rank", "evaluation:store"]
    words = ["--stand-ins", "actors.count=6", "actors.num_cpus=0.1", "iterations=8", "source.max_staleness=3"]
    words += ["source.groups_per_step=8"]
    told = sabotaged(workplace, tmp_path / "run", *kills, *words, "evaluation.strips=0")
    assert told.count("SABOTAGE") == len(kills) and "to be found" not in told, told
    complete(tmp_path / "run", 8, groups=8)
