"""`restorl pretrain` tells fine-tuning from training from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import cluster.cli.app as cli
from cluster.models import load_policy

CONFIGS = Path(__file__).parents[3] / "configs"
DEMO = Path(__file__).parents[3] / "models" / "demo"
SHORT = (
    *("cleaner=null", "diffusion.iterations=1", "diffusion.batch_size=1", "diffusion.crop=32", "sampler.steps=2"),
    *("validation.images=1", "diffusion.bfloat16=false", "device=cpu"),
)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["pretrain", *map(str, arguments)])


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("input", "target"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(tmp_path / split / name / "a.png")
    return tmp_path


def test_a_model_is_fine_tuned_and_restores_as_its_recipe_says(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    result = run(CONFIGS / "sft.yaml", f"model={DEMO}", f"data.root={pairs}", *SHORT, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"model: {out}" in result.output
    model, sampler = load_policy(out)
    assert model.name == load_policy(DEMO)[0].name and sampler.steps == 2


def test_without_a_sampler_of_its_own_the_model_keeps_the_one_it_came_with(pairs: Path, tmp_path: Path) -> None:
    given = [text for text in SHORT if not text.startswith("sampler")]
    assert (
        run(CONFIGS / "sft.yaml", f"model={DEMO}", f"data.root={pairs}", *given, "--out", tmp_path / "t").exit_code == 0
    )
    assert load_policy(tmp_path / "t")[1] == load_policy(DEMO)[1]


@pytest.mark.parametrize(
    ("config", "overrides", "told"),
    [
        ("sft", (), "model: is missing"),
        ("sft", ("model=m", "data.root=a", "data.photos=b"), "give one of them"),
        ("sft", ("model=m", "data.root=a", "diffusion.adapt.mod=lora"), "did you mean diffusion.adapt.mode?"),
        ("sft", ("model=m", "data.root=a", "vae.iterations=3"), "vae.iterations (command line): unknown key"),
        ("sft", ("model=m", "data.root=a", "diffusion.lr=0"), "diffusion.lr"),
        ("sft", ("model=m", "data.root=a", "kind=rl"), "choose sft or scratch"),
        ("sft", ("model=m", "data.root=a"), "m is not a folder"),
        ("pretrain_demo", ("model=m",), "model (command line): unknown key"),
    ],
)
def test_a_mistake_is_one_clear_line(
    config: str, overrides: tuple[str, ...], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(CONFIGS / f"{config}.yaml", *overrides, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert told in " ".join((result.output + capfd.readouterr().err).split())
