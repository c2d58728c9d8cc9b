"""`restorl actors scale` finds the run that is meant, and no other."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import cluster.jobs
from cluster.cli.app import app
from cluster.run import wishes
from cluster.run.wishes import Crew

CREW = Crew("01", "me@here", 2, 2, 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(cluster.jobs, "attach", lambda folder: contextlib.nullcontext())
    monkeypatch.setattr(cluster.jobs, "connect", lambda settings: contextlib.nullcontext())
    monkeypatch.setattr(wishes, "crews", lambda: {"demo-1a2b": CREW, "other-3c4d": CREW})
    monkeypatch.setattr(wishes, "ask", lambda run_id, count: (calls.append((run_id, count)), "8 in place of 2")[1])
    return calls


def scale(*words: str) -> Any:
    return CliRunner().invoke(app, ["actors", "scale", *words])


def test_the_run_of_a_folder_is_asked_by_its_own_id(asked: list[tuple[str, int]], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "demo-1a2b"}))
    result = scale("8", "--run", str(tmp_path))
    assert result.exit_code == 0 and result.output.strip() == "actors: 8 in place of 2"
    assert asked == [("demo-1a2b", 8)]


def test_on_a_cluster_the_only_run_is_meant_and_of_several_the_one_that_is_named(
    asked: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scale("3", "--address", "10.0.0.1:6379", "--id", "other-3c4d").exit_code == 0
    result = scale("3", "--address", "10.0.0.1:6379")
    assert result.exit_code == 2 and "name it by --id; there are: demo-1a2b, other-3c4d" in result.output
    monkeypatch.setattr(wishes, "crews", lambda: {"demo-1a2b": CREW})
    assert scale("4", "--address", "auto").exit_code == 0
    assert asked == [("other-3c4d", 3), ("demo-1a2b", 4)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["8"], "which run?"),
        (["8", "--run", "x", "--address", "auto"], "which run?"),
        (["8", "--run", "x", "--id", "y"], "which run?"),
        (["8", "--address", "auto", "--id", "nobody"], "run nobody isn't there, or is starting yet; there are: demo"),
        (["8", "--run", "/nowhere"], "/nowhere: no run.json"),
        (["0", "--run", "x"], "greater than or equal to 1"),
    ],
)
def test_no_run_is_guessed_and_none_is_left_without_an_actor(
    asked: list[tuple[str, int]], words: list[str], said: str
) -> None:
    result = scale(*words)
    assert result.exit_code == 2 and said in " ".join(result.output.split()) and not asked
