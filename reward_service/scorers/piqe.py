"""PIQE, a hand-made no-reference score without weights (Venkatanath et al., "Blind image quality evaluation using
perception based features", 2015): the share of visibly distorted blocks.

Small edits of a clean photograph can beat its score, so it judges results that were trained by another reward and is
a poor reward itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_service.scorers.interface import MEMORY_SIDE, check_block
from reward_service.scorers.natural_scenes import grey, in_parts, normalised
from reward_service.scorers.pixel_sums import folded, mirrored, total
from reward_service.scorers.room import room

SIDE = 16  # of a block
SEGMENT = 6  # length of an edge segment
ACTIVITY = 0.1  # least variance of a block that is looked at
FLATNESS = 0.1  # an edge segment of less deviation is a visible artefact
MIDDLE = SIDE // 2 - 1  # the first of the two middle columns


class Piqe:
    """Scores 100 - PIQE, 0 to 100, so that higher is better.

    Args:
        device: where to run.
    """

    name = "piqe"
    version = "piqe-2"
    least_side = SIDE
    preferred_batch = 32
    memory_bytes = 32 * MEMORY_SIDE**2 * 60  # measured, where all pictures are taken at once
    range = (0.0, 100.0)

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    @torch.inference_mode()
    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB, sides of at least 16 -> float32 [N].

        Raises:
            ValueError: another dtype or shape, or smaller sides.
        """
        found = torch.cat(in_parts(piqe, check_block(images, SIDE), self.device))
        return (100 - found).cpu().numpy().astype(np.float32)


def piqe(images: Tensor) -> Tensor:
    """PIQE of uint8 [N, H, W, 3] images, float64 [N]; lower is better."""
    with room() as kept:
        level = grey(images, room=kept)
        for dim in (-2, -1):
            level = mirrored(level, dim, 0, -level.shape[dim] % SIDE)
        count, high, wide = level.shape
        blocks = normalised(level, "replicate", signed=False, room=kept)
        blocks = blocks.view(count, high // SIDE, SIDE, wide // SIDE, SIDE)
        squares = torch.mul(blocks, blocks, out=kept.take(blocks, *blocks.shape))
        # sums [2, N, rows of blocks, blocks, 16]
        columns = torch.stack([folded(blocks, 2, kept), folded(squares, 2, kept)])
        flat = _has_flat_edge(blocks)
    variance = _variance(folded(columns, -1), SIDE * SIDE)
    active = (variance > ACTIVITY).double()
    distorted = flat * (1 - variance) + _is_noisy(columns, variance) * variance
    distorted = torch.where(active > 0, distorted, 0.0)
    # an image without an active block gets the worst score: (0 + 1) / (0 + 1)
    return (total(distorted.flatten(1)) + 1) / (total(active.flatten(1)) + 1) * 100


def _variance(of: Tensor, number: int) -> Tensor:
    """By the sum of so many numbers and that of their squares: [2, ...] -> [...]."""
    return (of[1] - of[0].square() / number).clamp_(min=0) / (number - 1)


def _has_flat_edge(blocks: Tensor) -> Tensor:
    """Whether any segment of a block's four edges hardly varies; float64 of 0 and 1."""
    rows = torch.stack([blocks[:, :, 0], blocks[:, :, -1]]).movedim(-1, 0)
    columns = torch.stack([blocks[..., 0], blocks[..., -1]]).movedim(3, 0)
    edges = torch.cat([rows, columns], 1)  # [16, 4, N, rows of blocks, blocks]: what is added lies side by side
    edges = torch.stack([edges, edges.square()], 1)
    segments = edges[: SIDE - SEGMENT + 1].clone()
    for at in range(1, SEGMENT):
        segments += edges[at : at + SIDE - SEGMENT + 1]
    return (_variance(segments.movedim(1, 0), SEGMENT) < FLATNESS**2).flatten(0, 1).any(0).double()


def _is_noisy(columns: Tensor, variance: Tensor) -> Tensor:
    """Whether the two middle columns deviate as much as the rest of the block; float64 of 0 and 1."""
    centre = _variance(columns[..., MIDDLE] + columns[..., MIDDLE + 1], 2 * SIDE).sqrt()
    # The published code takes the two columns out one after the other, so that the second is one too far right.
    rest = folded(columns, -1) - columns[..., MIDDLE] - columns[..., MIDDLE + 2]
    around = _variance(rest, (SIDE - 2) * SIDE).sqrt()
    contrast, sigma = (centre / around).nan_to_num(0.0), variance.sqrt()
    beta = (sigma - contrast).abs() / torch.maximum(sigma, contrast)
    return (sigma > 2 * beta).double()
