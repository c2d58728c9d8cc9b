"""NIQE (Mittal, Soundararajan, Bovik, "Making a Completely Blind Image Quality Analyzer", 2013): how far the statistics
of a picture's blocks are from those of pristine photographs, as the authors' MATLAB release computes it.

Of 38 clean crops of 128 px of the shipped photographs 28 score higher with more colour and 24 sharpened, and a crop of
few blocks has hardly any statistics: a witness for whole pictures, no reward to rely on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from restoration.checkpoints import CheckpointError, check_shapes, read_state
from reward_service.scorers.digests import digest_of
from reward_service.scorers.interface import MEMORY_SIDE, check_block
from reward_service.scorers.natural_scenes import SHAPES, fit, grey, half_size, in_parts, normalised, sums
from reward_service.scorers.pixel_sums import total
from reward_service.scorers.room import room

MODEL = Path(__file__).resolve().parents[2] / "models" / "niqe" / "niqe_pristine.safetensors"
BLOCK = 96
FEATURES = 36


class Niqe:
    """Scores 100 - NIQE, so that higher is better; a picture without any texture gets NaN.

    Args:
        model: file with the mean [36] and the covariance [36, 36] of pristine blocks; the committed one by default.
        device: where to run.

    Raises:
        ValueError: the file is missing or is no such model.
    """

    name = "niqe"
    least_side = BLOCK
    preferred_batch = 32
    memory_bytes = 32 * MEMORY_SIDE**2 * 80  # measured, where all pictures are taken at once
    range = (float("-inf"), 100.0)

    def __init__(self, model: str | None = None, device: str = "cpu") -> None:
        self.device = torch.device(device)
        file = Path(model) if model else MODEL
        wanted = {"mean": (FEATURES,), "covariance": (FEATURES, FEATURES)}
        try:
            state = read_state(file)
            check_shapes(wanted, {key: tuple(value.shape) for key, value in state.items()}, f"{file} is no NIQE model")
        except CheckpointError as error:
            raise ValueError(f"scorer niqe: {error}; the committed one is {MODEL.name} in models/niqe") from error
        pristine = {key: value.to(self.device, torch.float64, copy=True) for key, value in state.items()}
        self.mean, self.covariance = pristine["mean"], pristine["covariance"]
        self.version = f"niqe-1-{digest_of(pristine)}"

    @torch.inference_mode()
    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB, sides of at least 96 -> float32 [N].

        Raises:
            ValueError: another dtype or shape, or smaller sides.
        """
        blocks = torch.cat(in_parts(features, check_block(images, BLOCK), self.device))
        return (100 - self.niqe(blocks)).cpu().numpy().astype(np.float32)

    def niqe(self, blocks: Tensor) -> Tensor:
        """Features of blocks [N, B, 36], NaN where a block has none, -> [N]; lower is better."""
        mean = total(blocks.nan_to_num().transpose(1, 2)) / total((~blocks.isnan()).double().transpose(1, 2))
        covariance = _covariance(blocks)
        away = mean - self.mean
        found = []
        for own, distance in zip(covariance, away, strict=True):
            if not bool(own.isfinite().all() & distance.isfinite().all()):
                found.append(distance.new_tensor(float("nan")))
                continue
            inverse = torch.linalg.pinv((self.covariance + own) / 2)
            found.append(total(total(inverse * distance) * distance).sqrt())
        return torch.stack(found)


def _covariance(blocks: Tensor) -> Tensor:
    """Of the blocks that have every feature: [N, B, 36] -> [N, 36, 36]; of a single one 0, of none NaN."""
    whole = ~blocks.isnan().any(-1, keepdim=True)
    number = whole.double().sum(1)
    kept = torch.where(whole, blocks, 0.0).transpose(1, 2)  # [N, 36, B]
    away = torch.where(whole.transpose(1, 2), kept - (total(kept) / number)[..., None], 0.0)
    products = total(away[:, :, None] * away[:, None])
    return torch.where(number[..., None] > 0, products / (number[..., None] - 1).clamp(min=1), float("nan"))


def features(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> float64 [N, B, 36] of its whole blocks of 96 x 96: 18 at full and 18 at half size."""
    high, wide = images.shape[1] // BLOCK, images.shape[2] // BLOCK
    full = grey(images[:, : high * BLOCK, : wide * BLOCK])
    return torch.cat([_statistics(level, high, wide) for level in (full, half_size(full))], -1)


def _statistics(level: Tensor, high: int, wide: int) -> Tensor:
    """Shape and mean width of the normalised pixels; shape, mean and both widths of four products of neighbours."""
    count, side = len(level), level.shape[1] // high
    with room() as kept:
        blocks = normalised(level, "replicate", room=kept).view(count, high, side, wide, side).transpose(2, 3)
        fitted = fit(sums(blocks.reshape(-1, side, side), kept))
    left, right = fitted.left * fitted.scale, fitted.right * fitted.scale
    columns = torch.stack([fitted.shape, fitted.mean, left, right])
    columns[1, 0] = (left[0] + right[0]) / 2
    # the release has no width then, and takes the first shape that it tries
    columns = torch.where(fitted.one_sided, float("nan"), columns)
    columns[0] = columns[0].nan_to_num(SHAPES[0])
    own, products = columns[:2, 0].T, columns[:, 1:].permute(2, 1, 0).flatten(1)
    return torch.cat([own, products], 1).view(count, high * wide, -1)
