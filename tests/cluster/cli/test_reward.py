"""`restorl reward scale` finds the service of the run that is meant, and no other."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cluster.jobs
from cluster.cli.app import app
from reward_service import service


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(cluster.jobs, "attach", lambda folder: contextlib.nullcontext())
    monkeypatch.setattr(cluster.jobs, "connect", lambda settings: contextlib.nullcontext())
    monkeypatch.setattr(service, "scale", lambda name, replicas: calls.append((name, replicas)))
    return calls


def test_the_service_is_that_of_the_runs_own_id(scaled: list[tuple[str, int]], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "demo-1a2b"}))
    result = CliRunner().invoke(app, ["reward", "scale", "3", "--run", str(tmp_path)])
    assert (result.exit_code, scaled) == (0, [("reward-demo-1a2b", 3)])


def test_on_a_cluster_the_service_is_named(scaled: list[tuple[str, int]]) -> None:
    result = CliRunner().invoke(app, ["reward", "scale", "2", "--address", "10.0.0.1:6379", "--app", "reward-x-1"])
    assert (result.exit_code, scaled) == (0, [("reward-x-1", 2)])


@pytest.mark.parametrize("arguments", [[], ["--address", "auto"], ["--run", "runs/x", "--app", "reward-x-1"]])
def test_no_service_is_guessed(scaled: list[tuple[str, int]], arguments: list[str]) -> None:
    result = CliRunner().invoke(app, ["reward", "scale", "2", *arguments])
    assert result.exit_code == 2 and not scaled
    assert "which service?" in result.output
