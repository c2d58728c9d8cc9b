"""Train the cleaner (the clean condition of DiffBIR) to remove degradations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from restoration.backbones.cleaners import training_loss
from restoration.backbones.gated_unet import GatedUNet, GatedUNetConfig
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.precision import autocast
from restoration.pretrain.ahead import Ahead
from restoration.pretrain.fit import FitSettings
from restoration.pretrain.pairs import DegradedCrops, PairRecipe


@dataclass(frozen=True)
class CleanerRecipe(FitSettings):
    """
    Attributes:
        network: settings of the network (`GatedUNetConfig`, `RestormerConfig`).
        late_crop, late_batch: crops while the learning rate falls, larger ones: what a picture restored whole shows
            at its middle, a small crop rarely does. 0: as before.
        recolour: exchange the colours of every second crop (`DegradedCrops`).
    """

    kind: Literal["gated_unet", "restormer"] = "gated_unet"
    network: dict[str, Any] = field(default_factory=dict)
    iterations: int = 3000
    batch_size: int = 8
    crop: int = 64
    lr: float = 1e-3
    ema: float = 0.999
    late_crop: int = 0
    late_batch: int = 0
    recolour: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("late_crop", "late_batch"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: 0 or above")


def build_cleaner(recipe: CleanerRecipe) -> GatedUNet | Restormer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.kind == "gated_unet":
            return GatedUNet(GatedUNetConfig(**recipe.network))
        return Restormer(RestormerConfig(**recipe.network))


def pairs_of(photos: Path, pairs: PairRecipe, recipe: CleanerRecipe, workers: int) -> Ahead:
    """(lq, gt) of an iteration, float32 [batch, 3, crop, crop] in [0, 1] each."""
    small = DegradedCrops(photos, pairs, recipe.crop, recipe.seed, recipe.recolour)
    large = small
    if recipe.late_crop not in (0, recipe.crop):
        large = DegradedCrops(photos, pairs, recipe.late_crop, recipe.seed, recipe.recolour)

    def make(iteration: int) -> tuple[Tensor, ...]:
        late = iteration >= recipe.plateau
        drawn = large if late else small
        drawn.reseed((recipe.seed, 1, iteration))
        return drawn.batch(recipe.late_batch or recipe.batch_size if late else recipe.batch_size)

    return Ahead(make, workers)


def cleaner_losses(
    cleaner: nn.Module, recipe: CleanerRecipe, pairs: Ahead, device: torch.device, products: torch.dtype
) -> Callable[[int], Iterator[Tensor]]:
    """Iteration -> shares of the cleaner's own loss (`training_loss`), one a micro-batch."""

    def losses(iteration: int) -> Iterator[Tensor]:
        lq, gt = pairs(iteration)
        for rows in torch.arange(len(lq)).split(recipe.micro_batch):
            with autocast(device, products):
                restored = cleaner(lq[rows].to(device))
            yield training_loss(cleaner, restored, gt[rows].to(device)).sum() / len(lq)

    return losses
