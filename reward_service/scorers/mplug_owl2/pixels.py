"""From pictures to what the network sees, on its device: padded to a square, resized, normalised.

The resizing is Pillow's bicubic with antialiasing, which the published processor (transformers 4.36.1) uses, in the
same fixed-point numbers: 22 bits for a weight, each of the two passes rounded to levels. Integers give equal bits on
every device, whatever it does to floating-point products.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PAD = (122, 116, 104)  # CLIP's mean as levels, rounded down
_BITS = 22
_REACH = 2.0  # pixels on each side that a bicubic kernel covers

Box = tuple[int, int, int, int]
"""Top, bottom, left, right."""


def prepare(images: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """uint8 [N, H, W, 3] -> normalised [N, 3, side, side]."""
    x = resize(pad_to_square(images), side).permute(0, 3, 1, 2).to(torch.float32)
    mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return ((x / 255 - mean) / std).to(dtype)


def pad_to_square(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] in the middle of a square of the longer side; an odd pixel more stands below or right."""
    height, width = images.shape[1:3]
    if height == width:
        return images
    side = max(height, width)
    square = torch.tensor(PAD, dtype=torch.uint8, device=images.device).repeat(len(images), side, side, 1)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = images
    return square


def resize(images: Tensor, side: int) -> Tensor:
    """uint8 squares [N, S, S, 3] -> [N, side, side, 3]."""
    count, old = images.shape[:2]
    if old == side:
        return images
    x = images.transpose(1, 2).reshape(count, old, old * 3)  # columns first: a pass gathers whole lines
    x = _resample(x, side).view(count, side, old, 3).transpose(1, 2).reshape(count, old, side * 3)
    return _resample(x, side).view(count, side, side, 3)


def windows(height: int, width: int, side: int, along: int) -> list[Box]:
    """Boxes of at most `side` pixels a side, at the picture's own size, evenly spread from edge to edge.

    Args:
        along: how many along a side that is longer than `side`; one along a shorter one.

    Returns:
        None at all where the picture is not larger than one of them, or `along` is 0.
    """
    if along == 0 or max(height, width) <= side:
        return []

    def starts(length: int) -> list[int]:
        return [round(i * (length - side) / max(1, along - 1)) for i in range(along)] if length > side else [0]

    if along == 1:
        top, left = (max(0, (length - side) // 2) for length in (height, width))
        return [(top, min(top + side, height), left, min(left + side, width))]
    return [
        (top, min(top + side, height), left, min(left + side, width))
        for top in starts(height)
        for left in starts(width)
    ]


def _resample(x: Tensor, size: int) -> Tensor:
    """uint8 [N, S, C] -> [N, size, C]."""
    places, weights = _kernel(x.shape[1], size, str(x.device))
    total = torch.full((len(x), size, x.shape[2]), 1 << (_BITS - 1), dtype=torch.int32, device=x.device)
    for place, weight in zip(places, weights, strict=True):
        total += x.index_select(1, place) * weight[:, None]
    return (total >> _BITS).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=16)
def _kernel(old: int, new: int, device: str) -> tuple[Tensor, Tensor]:
    """Which pixels make a new one, and their weights: int64 and int32 [taps, new]."""
    scale = old / new
    stretch = max(scale, 1.0)  # a smaller picture averages over more pixels
    reach = _REACH * stretch
    taps = 2 * math.ceil(reach) + 1
    places, weights = np.zeros((taps, new), np.int64), np.zeros((taps, new))
    for i in range(new):
        centre = (i + 0.5) * scale
        first, last = max(0, int(centre - reach + 0.5)), min(old, int(centre + reach + 0.5))
        at = np.arange(first, last)
        weight = _bicubic((at - centre + 0.5) / stretch)
        places[: len(at), i], weights[: len(at), i] = at, weight / weight.sum()
    fixed = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int32)
    return torch.from_numpy(places).to(device), torch.from_numpy(fixed).to(device)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
