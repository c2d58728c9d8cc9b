"""Train the UNet and ControlNet by the model's own SFT loss, on latents made for many iterations at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restoration.base_models.diffbir import DiffBIR, DiffBIRSettings, Policy
from restoration.base_models.interface import Condition
from restoration.precision import autocast
from restoration.pretrain.fit import FitSettings
from restoration.pretrain.linear_start import carry, centre, linear_end, place
from restoration.pretrain.pairs import DegradedCrops, PairRecipe
from restoration.restore import seeded_generator

_TOGETHER = 16  # pairs that are encoded at once


@dataclass(frozen=True)
class DenoiserRecipe(FitSettings):
    """
    Attributes:
        network: arguments of `build_small`.
        crop: side of the pairs in pixels.
        pool: pairs whose latents are in memory and drawn from.
        refresh: iterations after which others take their place.
        latent_crop: side of the random crops of the latents; whole ones while the learning rate falls.
    """

    network: dict[str, Any] = field(default_factory=lambda: {"channels": (64, 96)})
    iterations: int = 3000
    batch_size: int = 16
    micro_batch: int = 16
    crop: int = 128
    lr: float = 5e-4
    ema: float = 0.999
    pool: int = 512
    refresh: int = 1000
    latent_crop: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pool", "refresh", "latent_crop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: at least 1")


def settings_of() -> DiffBIRSettings:
    """The network predicts the clean latent, so that it can begin as its condition (`keep_the_condition`)."""
    return DiffBIRSettings(
        name="diffbir-small", prediction="sample", zero_terminal_snr=True, trainable=(r"controlnet\.", r"unet\.")
    )


def keep_the_condition(model: DiffBIR) -> None:
    """The untrained network's output becomes the condition's latent, whatever x_t and the timestep are.

    The ControlNet's first convolution copies the latent, its first residual adds it to the UNet's first skip, which
    the UNet's last block reads.

    Raises:
        ValueError: too few channels (`linear_end`).
    """
    policy = model.policy
    assert isinstance(policy, Policy)
    unet, controlnet = policy.unet, policy.controlnet
    latents, width = unet.config.in_channels, unet.config.block_out_channels[0]
    if width < latents:
        raise ValueError(f"denoiser.network: {width} channels can't carry {latents} latent channels; choose more")
    signals = torch.eye(latents)
    place(controlnet.conv_in, centre(torch.cat([torch.zeros(latents, latents), signals], 1), 3))
    place(controlnet.controlnet_down_blocks[0], centre(signals, 1))
    place(unet.conv_in, centre(torch.zeros(latents, latents), 3))
    for attention in getattr(unet.up_blocks[-1], "attentions", [])[-1:]:
        nn.init.zeros_(attention.proj_out.weight)
        nn.init.zeros_(attention.proj_out.bias)
    last = unet.up_blocks[-1].resnets[-1]
    carry(last, 0)
    rows = torch.zeros(latents, last.in_channels)
    rows[:, last.in_channels - width :][:, :latents] = signals
    linear_end(last.conv_shortcut, centre(rows, 1), [], unet.conv_norm_out, unet.conv_out)


@torch.no_grad()
def latent_pool(model: DiffBIR, drawn: DegradedCrops, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(GT latents, condition latents) of `count` fresh pairs, float32 [count, C, h, w] on `device`."""
    gts, conditions = [], []
    for start in range(0, count, _TOGETHER):
        lq, gt = drawn.batch(min(_TOGETHER, count - start))
        gts.append(model.encode(gt.to(device)))
        conditions.append(model.condition(lq.to(device)).latent)
    return torch.cat(gts), torch.cat(conditions)


def denoiser_losses(
    model: DiffBIR,
    recipe: DenoiserRecipe,
    pairs: PairRecipe,
    photos: Path,
    device: torch.device,
    products: torch.dtype,
) -> Callable[[int], Iterator[Tensor]]:
    """Iteration -> shares of the mean SFT loss at random timesteps, one a micro-batch."""
    drawn = DegradedCrops(photos, pairs, recipe.crop, recipe.seed)
    pools: dict[int, Tensor] = {}
    text = model.embeddings["text"]

    def latents(iteration: int) -> Tensor:
        """[2, pool, C, h, w], GT and condition."""
        number = iteration // recipe.refresh
        if number not in pools:
            pools.clear()
            drawn.reseed((recipe.seed, 2, number))
            pools[number] = torch.stack(latent_pool(model, drawn, recipe.pool, device))
        return pools[number]

    def losses(iteration: int) -> Iterator[Tensor]:
        both, generator = latents(iteration), seeded_generator(f"denoiser/{iteration}", recipe.seed)

        def number(below: int, count: int = 1) -> Tensor:
            return torch.randint(below, (count,), generator=generator)

        both = both[:, number(both.shape[1], recipe.batch_size).to(device)]
        if iteration < recipe.plateau:
            side = min(recipe.latent_crop, *both.shape[-2:])
            y, x = (int(number(size - side + 1)) for size in both.shape[-2:])
            both = both[..., y : y + side, x : x + side]
        gt, latent = both.flip(-1) if int(number(2)) else both
        timestep = number(model.train_timesteps, recipe.batch_size)
        noise = torch.randn(gt.shape, generator=generator)
        for rows in torch.arange(recipe.batch_size).split(recipe.micro_batch):
            blank = torch.zeros(len(rows), 3, 1, 1, device=device)  # the loss looks at latents and text only
            condition = Condition(blank, latent[rows], text.expand(len(rows), -1, -1))
            with autocast(device, products):
                each = model.sft_loss(gt[rows], condition, timestep[rows].to(device), noise[rows].to(device))
            yield each.float().sum() / recipe.batch_size

    return losses
