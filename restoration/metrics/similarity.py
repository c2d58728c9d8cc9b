"""SSIM in the forms that the fields publish, as maps in float64: the mean of a map is the figure.

Constants are those of Wang et al. 2004 (0.01 and 0.03 of the range), on levels 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
UNIFORM_WINDOW = 7
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class Similarity:
    """One form of SSIM.

    Attributes:
        told: it in words.
        least_side: pixels a side that pictures must have.
        map: [B, C, H, W] twice, float64 levels -> [B, C, H', W'], of the windows.
        margin: pixels by which the map is smaller on each side.
    """

    told: str
    least_side: int
    margin: int
    map: Callable[[Tensor, Tensor], Tensor]


def gaussian_map(a: Tensor, b: Tensor) -> Tensor:
    """Gaussian window of 11, sigma 1.5, population covariance, only windows that lie inside."""
    return _ssim(a, b, _gaussian, 1.0)


def uniform_map(a: Tensor, b: Tensor) -> Tensor:
    """Uniform window of 7, sample covariance, only windows that lie inside: scikit-image's default."""
    return _ssim(a, b, _uniform, UNIFORM_WINDOW**2 / (UNIFORM_WINDOW**2 - 1))


def volume_map(a: Tensor, b: Tensor) -> Tensor:
    """A Gaussian over height, width and channels, edges repeated: MATLAB's `ssim` of an array [H, W, 3]."""
    return _ssim(a, b, _volume, 1.0)


SIMILARITIES = {
    "gaussian": Similarity("SSIM with a Gaussian window of 11, channels averaged", SSIM_WINDOW, 5, gaussian_map),
    "uniform": Similarity("SSIM with a uniform window of 7 and sample covariance", UNIFORM_WINDOW, 3, uniform_map),
    "volume": Similarity("3-D SSIM of MATLAB over height, width and channels", 1, 0, volume_map),
}


def _ssim(a: Tensor, b: Tensor, smooth: Callable[[Tensor], Tensor], unbiased: float) -> Tensor:
    mean_a, mean_b = smooth(a), smooth(b)
    variance_a = smooth(a * a) - mean_a.square()
    variance_b = smooth(b * b) - mean_b.square()
    covariance = smooth(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    return luminance * (2 * unbiased * covariance + C2) / (unbiased * (variance_a + variance_b) + C2)


def _window() -> list[float]:
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    weights: list[float] = (window / window.sum()).tolist()
    return weights


def _gaussian(images: Tensor) -> Tensor:
    """[..., H, W] to [..., H-10, W-10]."""
    return _weighted(images, _window())


def _uniform(images: Tensor) -> Tensor:
    """[..., H, W] to [..., H-6, W-6]."""
    return _weighted(images, [1 / UNIFORM_WINDOW] * UNIFORM_WINDOW)


def _volume(images: Tensor) -> Tensor:
    """[B, C, H, W] to the same: a Gaussian in three dimensions, the last values repeated beyond each edge."""
    weights, half = _window(), SSIM_WINDOW // 2
    spatial = _weighted(F.pad(images, (half,) * 4, mode="replicate"), weights)
    channels = images.shape[1]
    mixing = torch.zeros(channels, channels, dtype=images.dtype, device=images.device)
    for to in range(channels):
        for offset, weight in zip(range(-half, half + 1), weights, strict=True):
            mixing[to, min(max(to + offset, 0), channels - 1)] += weight
    return torch.einsum("oc,bchw->bohw", mixing, spatial)


def _weighted(images: Tensor, weights: list[float]) -> Tensor:
    """Weighted mean over each window that fits, both ways.

    Sums of shifted views: torch has no fast float64 convolution on CPU.
    """
    for axis in (-2, -1):
        length = images.shape[axis] - len(weights) + 1
        total = images.narrow(axis, 0, length) * weights[0]
        for shift, weight in enumerate(weights[1:], 1):
            total.add_(images.narrow(axis, shift, length), alpha=weight)
        images = total
    return images
