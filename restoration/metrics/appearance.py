"""How an image looks, for watching drift: a reward that can be bought with light, colour or sharpness is bought so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Figures = NDArray[np.float32]


def brightness(images: Pixels) -> Figures:
    """Mean of all channels, uint8 [N, H, W, 3] -> float32 [N] in [0, 1]."""
    return (images.mean((1, 2, 3)) / 255).astype(np.float32)


def saturation(images: Pixels) -> Figures:
    """Mean difference of the largest and the smallest channel; float32 [N] in [0, 1]."""
    return ((images.max(3).astype(np.float64) - images.min(3)).mean((1, 2)) / 255).astype(np.float32)


def laplacian(images: Pixels) -> Figures:
    """Mean absolute 4-neighbour Laplacian of the grey image: sharpness, and noise; float32 [N]."""
    x = images.mean(3) / 255
    inner = x[:, 1:-1, 1:-1]
    found = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:] - 4 * inner
    return np.abs(found).mean((1, 2)).astype(np.float32)


APPEARANCE: dict[str, Callable[[Pixels], Figures]] = {
    "brightness": brightness,
    "saturation": saturation,
    "laplacian": laplacian,
}
