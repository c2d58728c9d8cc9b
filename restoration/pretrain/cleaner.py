"""Train the cleaner (the clean condition of DiffBIR) to remove degradations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restoration.precision import autocast
from restoration.pretrain.pairs import DegradedCrops, PairRecipe
from restoration.pretrain.trainer import train
from restoration.pretrain.vae import psnr


@dataclass(frozen=True)
class CleanerRecipe:
    network: dict[str, Any] = field(
        default_factory=lambda: {"dim": 16, "num_blocks": [1, 1, 1, 2], "num_refinement_blocks": 1}
    )
    iterations: int = 3000
    batch_size: int = 8
    crop: int = 64
    lr: float = 1e-3
    seed: int = 0


def train_cleaner(
    cleaner: nn.Module,
    recipe: CleanerRecipe,
    pairs: PairRecipe,
    photos: Path,
    heldout: Path,
    log: Path,
    progress: Callable[..., None] | None = None,
    products: torch.dtype = torch.float32,
) -> dict[str, Any]:
    torch.manual_seed(recipe.seed)
    drawn = DegradedCrops(photos, pairs, recipe.crop, recipe.seed)
    lq_test, gt_test = DegradedCrops(heldout, pairs, 128, seed=1).batch(32)

    def loss() -> dict[str, Tensor]:
        lq, gt = drawn.batch(recipe.batch_size)
        with autocast("cpu", products):
            restored = cleaner(lq)
        l1 = (restored.float() - gt).abs().mean()
        return {"loss": l1, "l1": l1.detach()}

    def evaluate() -> dict[str, float]:
        return {
            "input_psnr": psnr(lq_test, gt_test).mean().item(),
            "heldout_psnr": psnr(cleaner(lq_test), gt_test).mean().item(),
        }

    return train(
        "cleaner", [cleaner], loss, iterations=recipe.iterations, lr=recipe.lr, log=log, evaluate=evaluate,
        progress=progress,
    )  # fmt: skip
