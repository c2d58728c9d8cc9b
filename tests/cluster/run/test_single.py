"""A run in one process, by the reference of the method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config.configure import build_config
from cluster.config.recipe import RunConfig
from cluster.run import single
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.diffbir import build_small
from restoration.evaluate import evaluate_pairs
from restoration.pretrain.vae import VaeRecipe, build_vae
from restoration.tiling import Tiling
from tests.system.conftest import write_pairs


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    torch.manual_seed(0)
    vae = build_vae(VaeRecipe(channels=(8, 16), crop=32)).eval()
    cleaner = Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1))
    build_small(vae, cleaner, channels=(16, 32), head_channels=16).save(tmp_path / "model")
    write_pairs(tmp_path / "pairs")
    recipe: dict[str, Any] = {
        "model": tmp_path / "model",
        "iterations": 1,
        "data": {"root": tmp_path / "pairs"},
        "sampler": {"steps": 2},
        "rollout": {"images_per_batch": 1, "rollouts_per_image": 2, "crop": 16},
        "reward": {"scorer": "tests.system.scorers:Contrast"},
        "source": {"groups_per_step": 1},
        "evaluation": {"limit": 2, "tile": 16, "dtype": "bfloat16", "pixels": 1024},
    }
    return build_config(RunConfig, recipe)


@pytest.mark.slow
def test_its_evaluations_take_the_pictures_tiles_and_type_that_the_recipe_says(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(single, "evaluate_pairs", lambda *a, **k: (asked.append(k), evaluate_pairs(*a, **k))[1])
    rows = single.train_single(config, tmp_path / "run")
    assert len(rows) == 2 and len((tmp_path / "run" / "evaluation" / "base.csv").read_text().splitlines()) == 3
    assert [(k["tiling"], k["dtype"], k["pixels"]) for k in asked] == [(Tiling(16, 4), torch.bfloat16, 1024)] * 2
