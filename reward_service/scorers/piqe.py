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
from torch.nn import functional

from reward_service.scorers.interface import check_block

SIDE = 16  # of a block
SEGMENT = 6  # length of an edge segment
ACTIVITY = 0.1  # least variance of a block that is looked at
FLATNESS = 0.1  # an edge segment of less deviation is a visible artefact
WINDOW, SIGMA = 7, 7 / 6


class Piqe:
    """Scores 100 - PIQE, 0 to 100, so that higher is better."""

    name = "piqe"
    version = "piqe-1"
    range = (0.0, 100.0)

    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB, sides of at least 16 -> float32 [N]."""
        pixels = torch.from_numpy(np.ascontiguousarray(check_block(images, SIDE)))
        # one by one: a score must not depend on its company, and sums of other shapes round otherwise
        return np.array([100 - float(piqe(image)) for image in pixels], dtype=np.float32)


def piqe(image: Tensor) -> Tensor:
    """PIQE of a uint8 [H, W, 3] image; lower is better."""
    weights = torch.tensor([0.2989, 0.5870, 0.1140], dtype=torch.float64)
    levels = (image.double() @ weights).round().numpy()
    height, width = levels.shape
    levels = np.pad(levels, ((0, -height % SIDE), (0, -width % SIDE)), mode="symmetric")
    grey = torch.from_numpy(levels)[None, None]
    mean = _smooth(grey)
    deviation = (_smooth(grey.square()) - mean.square()).abs().sqrt()
    blocks = _blocks((grey - mean) / (deviation + 1))  # [B, 16, 16]
    variance = blocks.flatten(1).var(1)
    active = variance > ACTIVITY
    if not active.any():
        return torch.tensor(100.0)
    blocks, variance = blocks[active], variance[active]
    distorted = _has_flat_edge(blocks) * (1 - variance) + _is_noisy(blocks, variance) * variance
    return (distorted.sum() + 1) / (len(blocks) + 1) * 100


def _smooth(x: Tensor) -> Tensor:
    at = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
    bell = torch.exp(-at.square() / (2 * SIGMA**2))
    kernel = (bell[:, None] * bell / bell.sum() ** 2)[None, None]
    return functional.conv2d(functional.pad(x, (WINDOW // 2,) * 4, mode="replicate"), kernel)


def _blocks(x: Tensor) -> Tensor:
    return x[0, 0].unfold(0, SIDE, SIDE).unfold(1, SIDE, SIDE).reshape(-1, SIDE, SIDE)


def _has_flat_edge(blocks: Tensor) -> Tensor:
    """Whether any segment of a block's four edges hardly varies; float64 [B] of 0 and 1."""
    edges = torch.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], 1)
    return (edges.unfold(-1, SEGMENT, 1).std(-1) < FLATNESS).flatten(1).any(1).double()


def _is_noisy(blocks: Tensor, variance: Tensor) -> Tensor:
    """Whether the two middle columns deviate as much as the rest of the block; float64 [B] of 0 and 1."""
    middle = SIDE // 2 - 1
    centre = blocks[:, :, middle : middle + 2].flatten(1).std(1)
    # The published code takes the two columns out one after the other, so that the second is one too far right.
    kept = [column for column in range(SIDE) if column not in (middle, middle + 2)]
    around = blocks[:, :, kept].flatten(1).std(1)
    contrast, sigma = (centre / around).nan_to_num(0.0), variance.sqrt()
    beta = (sigma - contrast).abs() / torch.maximum(sigma, contrast)
    return (sigma > 2 * beta).double()
