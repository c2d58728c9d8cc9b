"""Train a small SD-type VAE on crops of photographs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from restoration.precision import autocast
from restoration.pretrain.crops import PhotoCrops
from restoration.pretrain.trainer import train


@dataclass(frozen=True)
class VaeRecipe:
    channels: tuple[int, ...] = (32, 64, 64)  # one level each; downscaling is 2 ** (levels - 1)
    latent_channels: int = 4
    iterations: int = 4000
    horizon: int | None = None  # see `trainer.lr_factor`
    anneal: int = 0
    batch_size: int = 16
    crop: int = 64
    scale: tuple[float, float] = (0.4, 1.0)
    lr: float = 1e-3
    kl_weight: float = 1e-6
    seed: int = 0


def build_vae(recipe: VaeRecipe) -> AutoencoderKL:
    levels = len(recipe.channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=recipe.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=recipe.crop,
    )


def psnr(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Per-image PSNR [B] in dB of images in [0, 1]."""
    return -10 * torch.log10((x.clamp(0, 1) - y).square().mean(dim=(1, 2, 3)).clamp_min(1e-10))


def train_vae(
    recipe: VaeRecipe,
    photos: Path,
    heldout: Path,
    log: Path,
    progress: Callable[..., None] | None = None,
    products: torch.dtype = torch.float32,
) -> tuple[AutoencoderKL, dict[str, Any]]:
    """Train; sets `scaling_factor` so that latents have unit deviation. Returns the VAE and its evaluation."""
    torch.manual_seed(recipe.seed)
    vae = build_vae(recipe)
    crops = PhotoCrops(photos, recipe.crop, recipe.scale, recipe.seed)
    test = PhotoCrops(heldout, 128, (0.5, 1.0), seed=1).batch(32)

    def loss() -> dict[str, torch.Tensor]:
        x = crops.batch(recipe.batch_size)
        with autocast("cpu", products):
            posterior = vae.encode(x * 2 - 1).latent_dist
            y = vae.decode(posterior.sample()).sample
        error = y.float() - (x * 2 - 1)
        edges = sum(error.diff(dim=d).abs().mean() for d in (2, 3))
        l1, mse, kl = error.abs().mean(), error.square().mean(), posterior.kl().float().mean()
        return {"loss": l1 + mse + 0.5 * edges + recipe.kl_weight * kl, "l1": l1.detach(), "kl": kl.detach()}

    def evaluate() -> dict[str, float]:
        y = vae.decode(vae.encode(test * 2 - 1).latent_dist.mode()).sample
        return {"heldout_psnr": psnr((y + 1) / 2, test).mean().item()}

    result = train(
        "vae", [vae], loss, iterations=recipe.iterations, lr=recipe.lr, log=log, evaluate=evaluate, progress=progress,
        horizon=recipe.horizon, anneal=recipe.anneal,
    )  # fmt: skip
    with torch.no_grad():
        latents = vae.encode(torch.cat([crops.batch(16) for _ in range(8)]) * 2 - 1).latent_dist.mode()
    vae.register_to_config(scaling_factor=1 / latents.std().item())
    return vae, result
