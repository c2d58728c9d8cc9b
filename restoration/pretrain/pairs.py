"""Degraded/clean pairs made on the fly from crops of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from restoration.degradations import KINDS, Kind, degrade
from restoration.pretrain.crops import PhotoCrops


@dataclass(frozen=True)
class PairRecipe:
    """Which degradations are drawn, with what severity (uniform over the range, each kind equally often)."""

    kinds: tuple[Kind, ...] = KINDS
    severity: tuple[float, float] = (0.2, 1.0)
    scale: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        low, high = self.severity
        if not 0 < low <= high <= 1:
            raise ValueError(f"severity={self.severity}: need 0 < low <= high <= 1")


class DegradedCrops:
    """Draws (lq, gt) batches, float32 [B, 3, crop, crop] in [0, 1]; LQ on the 8-bit grid as files are.

    Args:
        recolour: exchange the colours of every second crop, where photographs are few.
    """

    def __init__(self, folder: Path, recipe: PairRecipe, crop: int, seed: int, recolour: bool = False) -> None:
        self.recipe, self.recolour = recipe, recolour
        self.crops = PhotoCrops(folder, crop, recipe.scale, seed)
        self.rng = np.random.default_rng((seed, 1))

    def reseed(self, seed: Sequence[int]) -> None:
        """The pairs from here on depend on `seed` and not on those before."""
        self.crops.reseed(seed)
        self.rng = np.random.default_rng((*seed, 1))

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        gt = self.crops.batch(size)
        if self.recolour:
            gt = torch.stack([self._recoloured(image) for image in gt])
        lq = [self._degraded(image) for image in gt.permute(0, 2, 3, 1).numpy()]
        return torch.from_numpy(np.stack(lq)).permute(0, 3, 1, 2).contiguous(), gt

    def _recoloured(self, image: Tensor) -> Tensor:
        return image[self.rng.permutation(3).tolist()] if self.rng.random() < 0.5 else image

    def _degraded(self, image: np.ndarray) -> np.ndarray:
        kind = self.recipe.kinds[self.rng.integers(len(self.recipe.kinds))]
        low, high = self.recipe.severity
        return degrade(image, kind, float(self.rng.uniform(low, high)), self.rng)
