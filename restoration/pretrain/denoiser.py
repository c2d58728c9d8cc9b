"""Train the UNet and ControlNet by the model's own SFT loss, on latents computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration.base_models.interface import BaseModel, Condition, SamplerSettings
from restoration.precision import autocast
from restoration.pretrain.pairs import DegradedCrops, PairRecipe
from restoration.pretrain.trainer import train
from restoration.pretrain.vae import psnr
from restoration.restore import sample


@dataclass(frozen=True)
class DenoiserRecipe:
    network: dict[str, Any] = field(default_factory=dict)  # arguments of `build_small`
    iterations: int = 3000
    batch_size: int = 16
    crop: int = 128
    pool: int = 1536  # pairs whose latents are computed once and drawn from
    latent_crop: int = 16  # random crops of the latents, but for the last `whole` iterations
    whole: int = 200
    lr: float = 1.5e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.whole <= self.iterations:
            raise ValueError(f"whole={self.whole} must lie between 0 and iterations={self.iterations}")


@torch.no_grad()
def latent_pool(model: BaseModel, drawn: DegradedCrops, count: int, batch: int = 32) -> tuple[Tensor, Tensor]:
    """(GT latents, condition latents) of `count` fresh pairs, float32 [count, C, h, w]."""
    gts, conditions = [], []
    for _ in range(0, count, batch):
        lq, gt = drawn.batch(batch)
        gts.append(model.encode(gt))
        conditions.append(model.condition(lq).latent)
    return torch.cat(gts)[:count], torch.cat(conditions)[:count]


def train_denoiser(
    model: BaseModel,
    recipe: DenoiserRecipe,
    pairs: PairRecipe,
    sampler: SamplerSettings,
    photos: Path,
    heldout: Path,
    log: Path,
    progress: Callable[..., None] | None = None,
    products: torch.dtype = torch.float32,
) -> dict[str, Any]:
    torch.manual_seed(recipe.seed)
    gts, conditions = latent_pool(model, DegradedCrops(photos, pairs, recipe.crop, recipe.seed), recipe.pool)
    lq_test, gt_test = DegradedCrops(heldout, pairs, 128, seed=1).batch(32)
    text = model.condition(lq_test[:1]).text
    blank = torch.zeros(recipe.batch_size, 3, 1, 1)  # the SFT loss looks at latents and text only
    drawn = iter(range(recipe.iterations))

    def loss() -> dict[str, Tensor]:
        rows = torch.randint(len(gts), (recipe.batch_size,))
        both = torch.stack([gts[rows], conditions[rows]])
        if next(drawn) < recipe.iterations - recipe.whole:
            side = min(recipe.latent_crop, *both.shape[-2:])
            y, x = (int(torch.randint(size - side + 1, ())) for size in both.shape[-2:])
            both = both[..., y : y + side, x : x + side]
        if torch.rand(()) < 0.5:
            both = both.flip(-1)
        gt, latent = both
        condition = Condition(blank, latent, None if text is None else text.expand(len(rows), -1, -1))
        timestep = torch.randint(model.train_timesteps, (len(rows),))
        with autocast("cpu", products):
            mean = model.sft_loss(gt, condition, timestep, torch.randn_like(gt)).mean()
        return {"loss": mean, "mse": mean.detach()}

    def evaluate() -> dict[str, float]:
        restored = sample(model, lq_test, sampler, torch.Generator().manual_seed(0))
        clean = model.condition(lq_test).clean
        return {
            "input_psnr": psnr(lq_test, gt_test).mean().item(),
            "cleaner_psnr": psnr(clean, gt_test).mean().item(),
            "vae_psnr": psnr(model.decode(model.encode(gt_test)), gt_test).mean().item(),
            "heldout_psnr": psnr(restored, gt_test).mean().item(),
        }

    return train(
        "denoiser", [model.policy], loss, iterations=recipe.iterations, lr=recipe.lr, log=log, evaluate=evaluate,
        progress=progress,
    )  # fmt: skip
