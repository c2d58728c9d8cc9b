from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import cluster.cli.app as cli
from cluster.cli import dry_run
from cluster.config.configure import load_config
from cluster.config.recipe import RunConfig
from cluster.run.checks.pictures import Pictures
from cluster.run.machine import Machine
from cluster.run.state import RunState
from restoration.base_models import describe
from restoration.footprint import counts_of

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "models" / "demo"
OURS = ROOT / "configs" / "ours.yaml"
TAKES_SMALL = "reward.scorer=piqe"  # pictures of 40 pixels, too


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for kind in ("input", "target"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
            Image.new("RGB", (60, 40)).save(tmp_path / "data" / split / kind / "a.png")
    return tmp_path / "data"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["train", *map(str, arguments)])


def rows_of(text: str, role: str) -> dict[str, float]:
    """The memory table of a role."""
    (table,) = [part for part in text.split("\n\n") if part.split()[:2] == [role, "GiB"]]
    return {name.strip(): float(value) for name, value in (line.rsplit(None, 1) for line in table.splitlines()[1:])}


@pytest.mark.slow
def test_the_plan_of_a_run_is_shown_and_nothing_is_started_or_written(data: Path) -> None:
    code = (
        "import sys\nfrom cluster.cli.app import app\n"
        f"try: app(['train', {str(OURS)!r}, 'model={DEMO}', 'data.root={data}', 'rollout.crop=40', {TAKES_SMALL!r}, "
        "'--dry-run'])\n"
        "except SystemExit as end: status = end.code\n"
        "print('status', status, [m for m in ('ray', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=data.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    text = done.stdout
    assert "chain: 6 steps (5 decisions), trailing, guidance 1" in text, done
    assert "pictures: 1 to train on, 1 held out; crops of 40x40, 8 rollouts each" in text
    assert "in flight: at most 16 groups, 4 rollout batches, over 1 actors" in text
    assert "MiB a group, at most 24 groups" in text and "reward: 40 images a group, 320 an iteration" in text
    assert [line.split() for line in text.splitlines() if line.split()[:1] == ["ranks"]] == [
        ["ranks", "1", "1", "0", "CPU"]
    ]
    assert text.splitlines()[-1] == "status 0 []"
    assert [p.name for p in data.parent.iterdir()] == ["data"]


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan leaves out what takes it seconds, the memory of each role, which other tests are about."""
    monkeypatch.setattr("cluster.cli.plan.memory_plan", lambda *_: [])


@pytest.mark.usefixtures("no_memory")
def test_the_plan_says_what_auto_is_on_this_processor(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = (TAKES_SMALL, "rollout.decode_dtype=auto", "evaluation.dtype=auto", "rollout.crop=40", "--dry-run")
    for bf16 in (True, False):
        monkeypatch.setattr("cluster.cli.dry_run.this_machine", lambda bf16=bf16: Machine(bf16=bf16))
        result = run(OURS, f"model={DEMO}", f"data.root={data}", *fast)
        assert result.exit_code == 0, result.output
        (line,) = [line for line in result.output.splitlines() if line.startswith("number types: ")]
        assert line == (
            "number types: float32 rollout.condition_dtype, rollout.denoise_dtype, learner.dtype, adapt.frozen_dtype; "
            f"{'bfloat16' if bf16 else 'float32'} (auto) rollout.decode_dtype, evaluation.dtype"
        )


def test_problems_end_with_status_2_and_are_told_at_once(data: Path) -> None:
    result = run(
        OURS, f"model={DEMO}", f"data.root={data}", "sampler.steps=1", "rollout.crop=38", TAKES_SMALL, "--dry-run"
    )
    assert result.exit_code == 2, result
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
    assert [p.split(":")[1].strip() for p in problems] == ["sampler.steps", "rollout.crop"]
    assert "choose 32 or 40" in result.stdout and "GiB" not in result.stdout


def test_a_model_or_data_that_are_not_there_are_problems_beside_the_others(tmp_path: Path) -> None:
    result = run(OURS, "model=/nowhere", f"data.root={tmp_path}/none", "reward.scorer=nima", "--dry-run")
    assert result.exit_code == 2
    assert len([line for line in result.stdout.splitlines() if line.startswith("problem: ")]) == 3
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", ["diffbir", "rap", "tsdsr"])
def test_a_recipe_of_the_paper_says_which_folders_to_supply(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(ROOT / "configs" / "paper" / f"{name}.yaml", "--dry-run")
    assert result.exit_code == 2
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
    assert [p.split(":")[1].strip() for p in problems] == ["model", "data", "reward.params.weights"]
    for problem, folder in zip(problems, (f"models/{name}_lol_real", "data/LOLv2/Real_captured", "DeQA"), strict=True):
        assert folder in problem and "; give " in problem


def test_data_that_are_not_there_are_told_beside_what_a_model_tells_without_pictures(tmp_path: Path) -> None:
    result = run(OURS, f"model={DEMO}", f"data.root={tmp_path}/none", "sampler.steps=1", "--dry-run")
    assert result.exit_code == 2, result
    problems = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
    assert [p.split(":")[1].strip() for p in problems] == ["sampler.steps", "data"] and "none" in problems[1]


@pytest.mark.usefixtures("no_memory")
def test_a_resumed_run_is_checked_against_what_it_was(tmp_path: Path, data: Path) -> None:
    config = load_config(RunConfig, OURS, [f"model={DEMO}", f"data.root={data}", "rollout.crop=40", TAKES_SMALL])
    with RunState(config, tmp_path / "run", resume=False):
        pass
    (tmp_path / "run" / "metrics.jsonl").write_text("torn")
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir()}
    result = run("--resume", tmp_path / "run", "seed=3", "--dry-run")
    assert result.exit_code == 2 and "problem: seed: 3 for a run that began with 0" in result.stdout
    result = run("--resume", tmp_path / "run", "sampler.steps=4", "--dry-run")
    assert result.exit_code == 0 and "warning: sampler.steps=4 in place of 6" in result.stdout
    assert load_config(RunConfig, tmp_path / "run" / "config.yaml") == config
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "run").iterdir()} == before


SMALL = ("rollout.images_per_batch=1", "rollout.rollouts_per_image=2", "learner.micro_batch=1", "evaluation.batch=1")


def test_memory_of_each_role_is_computed_for_a_shape_without_weights_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = describe(DEMO).skeleton
    monkeypatch.setattr(dry_run, "stock", {"sd21": shape}.__getitem__)
    result = run(OURS, *SMALL, "rollout.crop=512", "data.root=/nowhere", "--dry-run", "--shape", "sd21")
    assert result.exit_code == 0, result
    counts = counts_of(shape)
    frozen = (counts.policy + counts.frozen_beside) * 4 / 2**30
    for role, passes in (("actor", ("condition", "denoise", "decode", "evaluation")), ("rank", ("forward",))):
        table = rows_of(result.stdout, role)
        worst = max(gib for name, gib in table.items() if name.startswith(passes))
        assert table["frozen weights"] == pytest.approx(frozen, abs=0.005)
        assert worst > 0.1 and table["device, at most"] == pytest.approx(frozen + worst, abs=0.02)


def test_the_plan_of_a_shape_has_the_reward_and_asks_for_no_weights_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "stock", {"sd21": describe(DEMO).skeleton}.__getitem__)
    monkeypatch.setattr("cluster.cli.plan.memory_plan", lambda *_: [])  # of the others, which takes seconds
    small = ("rollout.crop=64", "sampler.guidance_scale=1", "data.root=/nowhere")
    result = run(ROOT / "configs" / "one_gpu.yaml", *small, "reward.num_gpus=0.2", "--dry-run", "--shape", "sd21")
    assert result.exit_code == 0, result
    table = rows_of(result.stdout, "reward")
    assert table["weights"] == pytest.approx(16.4e9 / 2**30, rel=0.01)
    work = table["a pass of 32 pictures (the worst)"]
    assert table["device, at most"] == pytest.approx(table["weights"] + work, abs=0.02)
    assert "warning: reward: about 17.99 GiB at its worst" in result.stdout and "num_gpus=0.2 of" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "billions"), [("sd21", 1.34), ("sdxl", 3.92), ("sd3", 2.68), ("flux", 15.3)])
def test_memory_of_each_role_is_computed_for_the_shapes_of_public_models(shape: str, billions: float) -> None:
    result = run(OURS, *SMALL, "rollout.crop=256", "data.root=/nowhere", "--dry-run", "--shape", shape)
    assert result.exit_code == 0, result
    actor, rank = rows_of(result.stdout, "actor"), rows_of(result.stdout, "rank")
    assert actor["frozen weights"] == rank["frozen weights"]
    assert actor["frozen weights"] == pytest.approx(billions * 1e9 * 4 / 2**30, rel=0.02)
    assert actor["device, at most"] > actor["frozen weights"]
    assert rank["device, at most"] > rank["frozen weights"] + rank["forward and backward (the worst)"]


def test_a_shape_is_planned_for_pictures_of_the_crop_s_size_beside_the_demo_s_smaller_ones(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `make demo` the examples of pages and help ended with its pictures being too small."""
    (data.parent / "data" / "demo").mkdir()
    (data.parent / "data" / "demo" / "rain").symlink_to(data)
    monkeypatch.chdir(data.parent)
    config = load_config(RunConfig, OURS, ["model=sd21", "rollout.crop=256"])
    found = dry_run.pictures_for(config, assumed=True)
    assert isinstance(found, Pictures) and set(found.train) == {(256, 256)} and not found.ids
    named = load_config(RunConfig, OURS, ["model=sd21", "rollout.crop=256", f"data.root={data}"])
    for pictures in (dry_run.pictures_for(config, assumed=False), dry_run.pictures_for(named, assumed=True)):
        assert isinstance(pictures, Pictures) and set(pictures.train) == {(40, 60)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "sd21"], "give it with --dry-run"),
        (["--dry-run", "--shape", "sd9"], "choose sd21, sdxl, sd3, flux"),
        (["--dry-run", "--shape", "sd21", "rollout.crop=0", "data.root=/nowhere"], "give a rollout.crop"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(arguments: list[str], said: str) -> None:
    result = run(OURS, *arguments)
    assert result.exit_code == 2 and said in result.stderr


def test_a_single_process_checks_the_same_before_it_loads_anything(tmp_path: Path, data: Path) -> None:
    given = [f"model={DEMO}", f"data.root={data}", "sampler.steps=1", "rollout.crop=38", TAKES_SMALL]
    result = run(OURS, *given, "--single", "--run", tmp_path / "run")
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    assert [line.split(":")[0] for line in result.stderr.splitlines()[1:]] == ["sampler.steps", "rollout.crop"]
