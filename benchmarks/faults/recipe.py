"""The model, the pairs and the recipe of a row's run: a few kilobytes, an iteration of about a second."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.faults.hosts import GCS, SECRET
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.diffbir import build_small
from restoration.pretrain.vae import VaeRecipe, build_vae
from tests.system.conftest import write_pairs

ITERATIONS, GROUPS = 12, 4


def write_workplace(folder: Path) -> None:
    """model/ and pairs/, which every row shares."""
    if (whole := folder / "whole").is_file():
        return
    for part in ("model", "pairs"):  # of a row that was interrupted
        shutil.rmtree(folder / part, ignore_errors=True)
    torch.manual_seed(0)
    vae = build_vae(VaeRecipe(channels=(8, 16), latent_channels=4, crop=32)).eval()
    cleaner = Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1))
    build_small(vae, cleaner, channels=(16, 32), head_channels=16).save(folder / "model")
    write_pairs(folder / "pairs")
    whole.touch()


def write_recipe(path: Path, workplace: Path, token: Path, store_url: str, name: str) -> None:
    """Synchronous (staleness 0), so that every iteration needs every part; every wait is a few minutes at most."""
    recipe: dict[str, Any] = {
        "name": name,
        "iterations": ITERATIONS,
        "model": str(workplace / "model"),
        "data": {"root": str(workplace / "pairs")},
        "sampler": {"steps": 3},
        "rollout": {"images_per_batch": 2, "rollouts_per_image": 2, "crop": 32},
        "reward": {
            "scorer": "tests.system.scorers:Contrast",
            "max_batch": 4,
            "num_cpus": 0.2,
            "resources": {"reward": 1},
            "deadline_s": 60,
            "start_timeout_s": 240,
            "terms": [{"name": "contrast"}, {"scorer": "psnr", "weight": 0.05}],
        },
        "optimiser": {"lr": 1e-3},
        "source": {"groups_per_step": GROUPS, "max_staleness": 0, "timeout_s": 300},
        "learner": {"micro_batch": 8, "norms_every": 0},
        "actors": {"num_cpus": 0.2, "resources": {"actor": 1}},
        "ranks": {"num_cpus": 0.2, "resources": {"learner": 1}},
        "store": {"url": store_url, "password_env": SECRET},
        "cluster": {"address": GCS, "auth": "token", "token_path": str(token)},
        "evaluation": {"every": 0, "strips": 1, "batch": 3},
        "start_timeout_s": 240,
        "stall_timeout_s": 240,
    }
    path.write_text(yaml.safe_dump(recipe))
