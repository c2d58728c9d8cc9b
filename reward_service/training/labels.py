"""Quality labels: a full-reference measure mapped to 1..5, and DeQA-Score's soft labels over five levels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])  # excellent, good, fair, poor, bad


Way = Literal["density", "mass"]
LEAST_DEVIATION = 0.2  # below which two levels share a label
_TOO_FAR = 0.1  # that a label's mean may be off


def soft_labels(quality: Tensor, deviation: float | Tensor, way: Way = "density") -> Tensor:
    """Probabilities [N, 5] of the levels for mean opinions `quality` [N] in [1, 5], as DeQA-Score makes them.

    Those of a normal distribution, then alpha * p + beta so that the sum is one and the mean is `quality`; where
    that is impossible (a negative probability, or a mean off by more than 0.1) the two nearest levels share it.

    Args:
        deviation: of single opinions, one for all or [N].
        way: the normal density at the levels, which DeQA-Score takes for KonIQ and KADID, or its mass within half a
            level of them, which it takes for SPAQ.
    """
    mu = quality.double()[:, None]
    spread = torch.as_tensor(deviation, dtype=torch.float64).reshape(-1, 1)
    levels = LEVELS.double()
    if way == "mass":
        p = torch.special.ndtr((levels + 0.5 - mu) / spread) - torch.special.ndtr((levels - 0.5 - mu) / spread)
    else:
        p = torch.exp(-0.5 * ((levels - mu) / spread) ** 2)
        p = p / (spread * (2 * torch.pi) ** 0.5)
    total, first = p.sum(1, keepdim=True), (p * levels).sum(1, keepdim=True)
    middle = first - 3 * total  # zero at quality 3, where alpha only has to fix the sum
    alpha = torch.where(middle.abs() > 1e-6, (mu - 3) / middle, 1 / total)
    q = (alpha * p + (1 - alpha * total) / 5).clamp_min(0)
    q = q / q.sum(1, keepdim=True)
    bad = ((q @ levels)[:, None] - mu).abs() > _TOO_FAR
    two_points = (1 - (levels - mu).abs()).clamp_min(0)
    return torch.where(bad | (spread < LEAST_DEVIATION), two_points, q).float()


def _luma(x: Tensor) -> Tensor:
    return (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _window() -> Tensor:
    g = torch.exp(-0.5 * ((torch.arange(11) - 5) / 1.5) ** 2)
    return torch.outer(g, g)[None, None] / g.sum() ** 2


def structure_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - SSIM of the luma, mean of full and half size; [B]."""
    losses = []
    for scale in (1, 2):
        a, b = (_luma(F.avg_pool2d(z, scale) if scale > 1 else z) for z in (x, y))
        w = _window()
        ma, mb = F.conv2d(a, w), F.conv2d(b, w)
        va, vb = F.conv2d(a * a, w) - ma**2, F.conv2d(b * b, w) - mb**2
        cov = F.conv2d(a * b, w) - ma * mb
        ssim = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
        losses.append(1 - ssim.mean((1, 2, 3)))
    return torch.stack(losses).mean(0)


def tone_loss(x: Tensor, y: Tensor) -> Tensor:
    """Root mean square difference of 8x8 means: brightness and colour; [B]."""
    return F.avg_pool2d(x - y, 8).square().mean((1, 2, 3)).sqrt()


def feature_loss(x: list[Tensor], y: list[Tensor]) -> Tensor:
    """Mean squared distance of unit-normalised feature vectors, summed over the maps; [B]."""
    pairs = [(F.normalize(a, dim=1), F.normalize(b, dim=1)) for a, b in zip(x, y, strict=True)]
    parts = [(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]
    return torch.stack(parts).sum(0)


# Chosen so that the restoration tasks span about 3.3 to 1.3 and the mildest distortions lie above 4.5.
WEIGHTS = {"feature": 0.25, "structure": 0.9, "tone": 1.5}
CLEAN = 4.8  # not 5: a softmax can't put its mean on the end, and what lies near clean is what a policy climbs


def quality(feature: Tensor, structure: Tensor, tone: Tensor) -> Tensor:
    """1..CLEAN from the three losses [B]: exponential, so that the first small damages cost the most."""
    harm = WEIGHTS["feature"] * feature + WEIGHTS["structure"] * structure + WEIGHTS["tone"] * tone
    return 1 + (CLEAN - 1) * torch.exp(-harm)
