from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import subprocess
import sys
import warnings
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cluster.cli.app as cli
from cluster.cli.errors import USER_MISTAKE, UserMistake, guarded, is_expected, message_of, take_debug_flag
from cluster.cli.output import partial_csv
from cluster.config.configure import ConfigError
from restoration.evaluate import Row
from restoration.images import ImageError
from tests.cluster.report.synthetic_run import make_run

COMMANDS = (
    *("train", "pretrain", "convert", "restore", "evaluate", "score", "report", "audit"),
    *("reward serve", "reward status", "reward scale", "reward stop", "data demo", "data make", "data check"),
    *(
        "status",
        "timeline",
        "chain",
        "plan",
        "compare",
        "paper run",
        "paper table",
        "paper figure",
        "annotate export",
        "annotate convert",
        "annotate clean",
        "actors scale",
        "watch install",
        "watch render",
        "deploy render",
        "deploy check",
    ),
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


def test_a_full_disk_is_one_line_with_the_file_and_what_to_do_in_every_command() -> None:
    @guarded
    def command() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scores.csv")

    with redirect_stderr(io.StringIO()) as shown, pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == USER_MISTAKE
    assert shown.getvalue() == "[Errno 28] No space left on device: 'scores.csv'; free space there\n"
    assert not is_expected(OSError("ours"))


def test_a_partial_file_that_cannot_be_written_does_not_hide_why_a_command_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("restoration.evaluate.write_csv", full)
    with (
        redirect_stderr(io.StringIO()) as shown,
        pytest.raises(ZeroDivisionError),
        partial_csv(tmp_path / "a.csv", [Row("a", {"psnr": 1.0})]),
    ):
        raise ZeroDivisionError("ours")
    assert "which can't be kept" in shown.getvalue() and "No space left" in shown.getvalue()


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
    assert title.startswith(f"{count} images, protocol lowlight_rgb (RGB, 8 bits; SSIM with a Gaussian window of 11")
    assert head.split() == ["psnr", "ssim", scorer, f"gt_{scorer}"] and 5 < float(means.split()[1]) < 60
    assert len((tmp_path / "a.csv").read_text().splitlines()) == count + 1
    scored = run("score", test / "target", "--scorer", scorer)
    assert scored.exit_code == 0 and "brightness, version 1, range 0 to 255" in scored.stdout
    # The same images as the originals of the evaluation, so the same mean.
    assert scored.stdout.splitlines()[-1].split()[-1] == means.split()[-1]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """restored/ and originals/ of two pictures of 32 pixels, and restored/tiny.png and cut.png, which are none."""
    rng = np.random.default_rng(0)
    for side in ("restored", "originals"):
        (tmp_path / side).mkdir()
        for name, size in (("a", 32), ("b", 32), ("cut", 32), ("tiny", 8)):
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / side / f"{name}.png")
    cut = tmp_path / "restored" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:200])
    return tmp_path


def test_an_evaluation_tells_what_is_missing_of_which_picture_and_has_the_figures_of_the_others(results: Path) -> None:
    csv = results / "a.csv"
    result = run("evaluate", results / "restored", results / "originals", "--scorer", "piqe", "--csv", csv)
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    title, head, means, having, told, *missing = result.stdout.splitlines()
    assert title.startswith("4 images, protocol lowlight_rgb (RGB") and head.split() == [
        "psnr",
        "ssim",
        "piqe",
        "gt_piqe",
    ]
    assert all(np.isfinite(float(mean)) for mean in means.split()[1:])
    assert having.split() == ["of", "3", "2", "2", "2"]
    assert told == "2 of 4 images lack figures, which the means leave out:"
    assert len(missing) == 3 and str(results / "restored" / "cut.png") in missing[0]
    assert missing[1:] == [
        "  ssim of tiny: SSIM needs images of at least 11 px a side, got 8x8 (width x height)",
        "  piqe, gt_piqe of tiny: images of 8x8 are too small: sides of 16 at least",
    ]
    lines = csv.read_text().splitlines()
    assert len(lines) == 5 and lines[3].startswith("cut,,,,,") and "cut.png" in lines[3]


def test_a_scorer_takes_its_settings_behind_commas(photos: Path) -> None:
    folder = photos / "train"
    usual, named = (run("score", folder, "--scorer", "lite0_levels" + more) for more in ("", ",chunk=2,device=cpu"))
    assert usual.exit_code == named.exit_code == 0 and usual.stdout == named.stdout
    for settings, told in (("weights=nowhere", "nowhere"), ("color=red", "color"), ("red", "'red'")):
        refused = run("score", folder, "--scorer", f"lite0_levels,{settings}")
        assert refused.exit_code == 2 and told in refused.output and "Traceback" not in refused.output


def test_a_server_scores_a_folder_and_a_failing_one_is_told_for_each_file(photos: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, Path(__file__).parents[3] / "docs" / "reward_server.py", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{server.stdout.readline().split()[-1]}"
        scored = run("score", photos / "train", "--scorer", f"{url},timeout_s=20,retries=0")
        assert scored.exit_code == 0 and "contrast, version contrast-1, range 0 to 127.5" in scored.output
    finally:
        server.kill()
        server.communicate(timeout=10)
    gone = run("score", photos / "train", "--scorer", f"{url},retries=0")
    assert gone.exit_code == 2 and "is the server up?" in gone.output and "Traceback" not in gone.output


def test_scores_name_each_file_that_has_none_and_go_on_with_the_rest(results: Path) -> None:
    scorer = "tests.cluster.cli.test_cli:Brightness"
    sub = results / "restored" / "sub"
    sub.mkdir()
    Image.new("RGB", (16, 16)).save(sub / "black.png")
    csv = results / "a.csv"
    result = run("score", results / "restored", "--scorer", scorer, "--csv", csv)
    assert result.exit_code == 1 and "Traceback" not in result.output, result.output
    title, _, means, having, told, *missing = result.stdout.splitlines()
    assert title.startswith("5 images, brightness") and having.split() == ["of", "3"] and float(means.split()[1]) > 0
    assert told.startswith("2 of 5 images lack figures") and len(missing) == 2
    assert str(results / "restored" / "cut.png") in missing[0]
    assert missing[1] == f"  {sub / 'black.png'}: {scorer} gave nan, which is no score"
    cells = {line.split(",")[0]: line.split(",")[1] for line in csv.read_text().splitlines()[1:]}
    assert [name for name, cell in cells.items() if not cell] == ["cut.png", "sub/black.png"]
    small = run("score", results / "restored", "--scorer", "piqe")
    assert small.exit_code == 1
    assert f"{results / 'restored' / 'tiny.png'}: images of 8x8 are too small: sides of 16 at least" in small.stdout


def test_what_was_measured_before_an_evaluation_is_stopped_is_kept(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = Brightness.score, []

    def stopped(self: Brightness, images: np.ndarray) -> np.ndarray:
        calls.append(images)
        if len(calls) > 4:  # two figures a picture, of the result and of its original
            raise KeyboardInterrupt
        return score(self, images)

    monkeypatch.setattr(Brightness, "score", stopped)
    scorer = "tests.cluster.cli.test_cli:Brightness"
    csv = results / "a.csv"
    result = run("evaluate", results / "originals", results / "originals", "--scorer", scorer, "--csv", csv)
    assert result.exit_code == 130 and not csv.exists()
    kept = results / "a.partial.csv"
    assert f"2 images were measured before the end: {kept}" in result.stderr.replace("\n", " ")
    assert [line.split(",")[0] for line in kept.read_text().splitlines()] == ["image_id", "a", "b"]


def test_a_warning_for_the_user_is_one_line_once_and_other_warnings_are_left_alone() -> None:
    @guarded
    def command() -> None:
        for _ in range(2):
            warnings.warn("left out 3 .heic", stacklevel=1)
        warnings.warn("an array", RuntimeWarning, stacklevel=1)

    before = warnings.showwarning
    with warnings.catch_warnings(record=True) as others, redirect_stderr(io.StringIO()) as shown:
        warnings.simplefilter("always")
        command()
    assert shown.getvalue() == "warning: left out 3 .heic\n"
    assert [str(other.message) for other in others] == ["an array"]
    assert warnings.showwarning is before


class Brightness:
    """A scorer for tests: the mean level; black has none."""

    name, version, range = "brightness", "1", (0.0, 255.0)

    def score(self, images: np.ndarray) -> np.ndarray:
        levels = images.reshape(len(images), -1).mean(1).astype(np.float32)
        return np.where(levels == 0, np.float32("nan"), levels)


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
