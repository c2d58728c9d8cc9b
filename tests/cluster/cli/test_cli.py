from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cluster.cli.app as cli
from cluster.cli.errors import USER_MISTAKE, UserMistake, guarded, is_expected, message_of, take_debug_flag
from cluster.config.configure import ConfigError
from restoration.images import ImageError
from tests.cluster.report.synthetic_run import make_run

COMMANDS = (
    *("train", "pretrain", "convert", "restore", "evaluate", "score", "report", "audit"),
    *("reward scale", "data demo"),
)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "heldout"):
        (tmp_path / "photos" / split).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(tmp_path / "photos" / split / "a.png")
    return tmp_path / "photos"


def test_help_is_there_at_once_because_no_heavy_library_is_imported() -> None:
    heavy = ("torch", "ray", "diffusers", "deepspeed", "numpy", "matplotlib", "redis", "pyarrow")
    code = (
        "import sys, cluster.cli.app\ntry: cluster.cli.app.app(['train', '--help'])\nexcept SystemExit: pass\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    # Seconds of CPU, which other processes on the machine don't stretch.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert f"restorl {command} " in result.stdout.replace(f"Usage: restorl {command}", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "which recipe? restorl train CONFIG"),
        (["train", "--resume", "x", "--run", "y"], "--run and --resume name two folders"),
        (["train", "demo.yaml", "--resume", "x"], "leave CONFIG out"),
        (["train", "--resume", "/nowhere"], "/nowhere is no run: there is no config.yaml in it"),
        (["report", "/nowhere"], "give the folder of a run"),
        (["audit", "/nowhere"], "/nowhere is no run"),
        (["restore", "--model", "/nowhere", "a.png", "b.png"], "/nowhere is neither a run"),
        (["restore", "--model", "m", "a.png", "b.png", "--tile", "64"], "tiles of 64 pixels that overlap by 64"),
        (["restore", "--model", "m", "a.png", "b.png", "--dtype", "int8"], "choose float32, bfloat16, float16 or auto"),
        (["restore", "--model", "m", "a.png", "b.png", "--bits", "12"], "and 8 or 16"),
        (["reward", "scale", "2", "--run", "/nowhere"], "no run is running there"),
        (["data", "demo", "/tmp/x", "--task", "snow"], "choose from rain"),
        (["evaluate", "/nowhere", "/nowhere"], "/nowhere"),
        (["evaluate", "a", "b", "--protocol", "matlab"], "choose one of lowlight_rgb, derain_y"),
        (["evaluate", "a", "b", "--lpips", "/nowhere"], "alexnet-owt-7be5be79.pth is absent"),
        (["evaluate", "a", "b", "--scorer", "nima"], "no scorer named 'nima'; there are"),
        (["convert", "pasd", "/nowhere/model", "base=a"], "missing checkpoint, cleaner; it takes base, "),
        (["convert", "pasd", "/nowhere/model", "--dtype", "int8"], "choose float32"),
        (["score", "/nowhere", "--scorer", "reward_service.scorers.interface:Nothing"], "cannot be imported"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_status_2(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == USER_MISTAKE, result
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and said in lines[0] and "Traceback" not in result.output


def test_debug_may_stand_anywhere_and_shows_the_stack_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESTORL_DEBUG", raising=False)
    assert take_debug_flag(["report", "/nowhere"]) == ["report", "/nowhere"] and "RESTORL_DEBUG" not in os.environ
    command = [sys.executable, "-m", "cluster.cli", "report", "--debug", "/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == USER_MISTAKE and "Traceback" in done.stderr and "give the folder of a run" in done.stderr


def test_a_programming_error_keeps_its_stack_trace() -> None:
    @guarded
    def broken() -> None:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not is_expected(ValueError("ours"))


def test_errors_are_known_by_name_also_when_an_actor_raised_them() -> None:
    class RayTaskError(Exception):
        """As Ray does it: a class derived from its own error and from the cause's."""

        def __init__(self, cause: Exception):
            self.cause = cause

        def __str__(self) -> str:
            return "ray::roll() (pid=3) Traceback ..."

    class RemoteImageError(RayTaskError, ImageError):
        pass

    class StoreUnreachable(type("StoreError", (RuntimeError,), {})):  # type: ignore[misc]
        pass

    error = RemoteImageError(ImageError("a.png: truncated"))
    assert is_expected(error) and message_of(error) == "a.png: truncated"
    assert is_expected(StoreUnreachable()) and message_of(StoreUnreachable()) == "StoreUnreachable"
    assert is_expected(ConfigError.of("x")) and is_expected(UserMistake("x")) and is_expected(FileNotFoundError(2, "x"))


def test_ctrl_c_in_training_tells_how_to_resume_and_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = _fake_training(monkeypatch, KeyboardInterrupt())
    result = run("train", "recipe.yaml", "a=1", "--run", tmp_path / "r")
    assert result.exit_code == 130
    assert f"restorl train --resume {tmp_path / 'r'}" in result.stderr and "Traceback" not in result.output
    assert calls == [("recipe.yaml", ["a=1"], tmp_path / "r", False)]


def test_a_resumed_run_takes_its_own_recipe_with_overrides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = _fake_training(monkeypatch, None)
    result = run("train", "--resume", tmp_path, "iterations=40", "seed=2")
    assert result.exit_code == 0, result
    assert calls == [(str(tmp_path), ["iterations=40", "seed=2"], tmp_path, True)]
    assert "psnr           18.0000   24.0000   25.0000" in result.stdout
    assert "5 iterations in 61 s, peak 900 MB" in result.stdout
    assert f"report: {tmp_path / 'report.html'}" in result.stdout


def test_a_new_run_never_takes_a_folder_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli._new_run_folder("a b/c") == Path("runs/a-b-c")
    Path("runs/a-b-c").mkdir(parents=True)
    Path("runs/a-b-c-2").mkdir()
    assert cli._new_run_folder("a b/c") == Path("runs/a-b-c-3")


def _fake_training(monkeypatch: pytest.MonkeyPatch, raises: BaseException | None) -> list[Any]:
    """Replaces the driver and the configuration's model, which have tests of their own; returns the calls made."""
    calls: list[Any] = []

    def train(config: Any, folder: Path, resume: bool) -> Any:
        calls.append((*config.given, folder, resume))
        if raises is not None:
            raise raises
        base, tuned = {"psnr": 24.0, "input_psnr": 18.0, "gt_reward": 4.0}, {"psnr": 25.0}
        return SimpleNamespace(
            base=base, rl=tuned, iterations=5, seconds=61.2, peak_memory_mb=900.0, report=folder / "report.html"
        )

    def load(source: object, given: object) -> Any:
        return SimpleNamespace(name="x", given=(str(source), list(given)))  # type: ignore[call-overload]

    monkeypatch.setitem(sys.modules, "cluster.run.driver", SimpleNamespace(train=train))
    monkeypatch.setattr("cluster.run.driver", SimpleNamespace(train=train), raising=False)
    monkeypatch.setitem(sys.modules, "cluster.config.recipe", SimpleNamespace(RunConfig=None))
    monkeypatch.setattr("cluster.config.configure.load_config", lambda model, path, given: load(path, given))
    monkeypatch.setattr("cluster.models.load_run_config", load)
    return calls


def test_report_writes_the_page_and_prints_where(tmp_path: Path) -> None:
    result = run("report", make_run(tmp_path / "run", images=3, iterations=3))
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "run" / "report.html")
    (tmp_path / "run" / "run.json").write_text("{")
    assert run("report", tmp_path / "run").exit_code == USER_MISTAKE


def test_demo_data_then_evaluation_and_scores_of_folders(photos: Path, tmp_path: Path) -> None:
    made = run("data", "demo", tmp_path / "demo", "--photos", photos, "--task", "rain", "--crop", 32)
    assert made.exit_code == 0 and made.stdout == f"rain: {tmp_path / 'demo' / 'rain'}\n", made
    test = tmp_path / "demo" / "rain" / "test"
    scorer = "tests.cluster.cli.test_cli:Brightness"
    result = run("evaluate", test / "input", test / "target", "--scorer", scorer, "--csv", tmp_path / "a.csv")
    assert result.exit_code == 0, result
    count = len(list((test / "input").glob("*.png")))
    title, head, means = result.stdout.splitlines()
    assert title == f"{count} images, protocol lowlight_rgb"
    assert head.split() == ["psnr", "ssim", scorer, f"gt_{scorer}"] and 5 < float(means.split()[1]) < 60
    assert len((tmp_path / "a.csv").read_text().splitlines()) == count + 1
    scored = run("score", test / "target", "--scorer", scorer)
    assert scored.exit_code == 0 and "brightness, version 1, range 0 to 255" in scored.stdout
    # The same images as the originals of the evaluation, so the same mean.
    assert scored.stdout.splitlines()[-1].split()[-1] == means.split()[-1]


class Brightness:
    """A scorer for tests: the mean level."""

    name, version, range = "brightness", "1", (0.0, 255.0)

    def score(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1).mean(1).astype(np.float32)


def test_the_audit_tells_and_its_status_says_whether_all_is_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from trajectories.audit import Ledger, LedgerEntry, audit

    good = LedgerEntry("1-0", "g1", 4, 10, 1, ("consumed:step=1",))
    twice = LedgerEntry("2-0", "g2", 4, 10, 1, ("consumed:step=1", "consumed:step=2"))
    for entries, status in (((good,), 0), ((good, twice), 1)):
        found = audit(Ledger("r", 1, entries))
        monkeypatch.setattr("cluster.report.run_audit.audit_run", lambda run, found=found: (found, "store"))
        result = run("audit", tmp_path)
        assert result.exit_code == status and re.search("^consumed:", result.stdout, re.M), result
        assert json.loads(run("audit", tmp_path, "--json").stdout)["ok"] is (status == 0)
