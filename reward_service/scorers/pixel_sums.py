"""Weighted sums over pixels, each in two ways: by OpenCV and NumPy, several times as fast on a CPU, and by torch on any
device. A picture's numbers depend on its own pixels and size only, in both."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

STRIP = 1 << 13
"""Pixels whose colours stay in a CPU's cache."""


def channels_sum(images: Tensor, weights: Sequence[float]) -> Tensor:
    """uint8 [N, H, W, 3] -> float64 [N, H, W], weighted."""
    if images.device.type != "cpu":
        return channels_sum_anywhere(images, weights)
    count, high, wide, _ = images.shape
    found, kernel = np.empty((count * high, wide)), np.array([weights])
    step = max(1, STRIP // wide)
    for start in range(0, count * high, step):
        pixels = images.reshape(count * high, wide, 3)[start : start + step].double().numpy()
        found[start : start + step] = cv2.transform(pixels, kernel)
    return torch.from_numpy(found).view(count, high, wide)


def channels_sum_anywhere(images: Tensor, weights: Sequence[float]) -> Tensor:
    parts = [images[..., channel].double() * weight for channel, weight in enumerate(weights)]
    return parts[0] + parts[1] + parts[2]


def blurred(x: Tensor, half: Sequence[float]) -> Tensor:
    """[N, H + 2 R, W + 2 R] -> [N, H, W], by the weights `half` (R + 1) from the centre outwards along both sides."""
    if x.device.type != "cpu":
        return blurred_anywhere(x, half)
    reach = len(half) - 1
    kernel = np.array([*half[:0:-1], *half])
    found = np.empty(x.shape, x.numpy().dtype)
    for picture, result in zip(x.numpy(), found, strict=True):
        cv2.sepFilter2D(picture, -1, kernel, kernel, result)
    return torch.from_numpy(found)[:, reach:-reach, reach:-reach]


def blurred_anywhere(x: Tensor, half: Sequence[float]) -> Tensor:
    reach = len(half) - 1
    for dim in (-2, -1):
        taps = [x.narrow(dim, tap, x.shape[dim] - 2 * reach) for tap in range(2 * reach + 1)]
        x = taps[reach] * half[0]
        for k in range(1, reach + 1):
            x.add_(taps[reach - k] * half[k]).add_(taps[reach + k] * half[k])
    return x


def halved(x: Tensor, half: Sequence[float]) -> Tensor:
    """[N, H, W], sides of at least R -> [N, H/2, W/2], odd sides rounded up.

    Each of its pixels is the sum, along both sides, of the R pixels on either side of the middle of two, by the weights
    `half` from the nearest outwards; the border's pixels are mirrored.
    """
    if x.device.type != "cpu":
        return halved_anywhere(x, half)
    kernel, at = np.array([*half[::-1], *half]), len(half) - 1
    found = [
        cv2.sepFilter2D(picture, -1, kernel, kernel, anchor=(at, at), borderType=cv2.BORDER_REFLECT)[::2, ::2]
        for picture in x.numpy()
    ]
    return torch.from_numpy(np.stack(found))


def halved_anywhere(x: Tensor, half: Sequence[float]) -> Tensor:
    reach = len(half)
    for dim in (-2, -1):
        new, odd = (x.shape[dim] + 1) // 2, x.shape[dim] % 2
        pairs = mirrored(x, dim, reach - 1, reach - 1 + odd).unflatten(dim, (-1, 2))
        taps = [pairs.select(dim, tap % 2).narrow(dim, tap // 2, new) for tap in range(2 * reach)]
        x = (taps[reach - 1] + taps[reach]) * half[0]
        for k in range(1, reach):
            x.add_((taps[reach - 1 - k] + taps[reach + k]) * half[k])
    return x


def mirrored(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """`x` with so much more along a dimension, the border's pixel twice."""
    start, end = x.narrow(dim, 0, before), x.narrow(dim, x.shape[dim] - after, after)
    return torch.cat([start.flip(dim), x, end.flip(dim)], dim)


def row_products(x: Tensor, y: Tensor) -> Tensor:
    """Sums of the products along rows: [N, H, W] twice -> [N, H]."""
    if x.device.type != "cpu":
        return total(x * y)
    return torch.from_numpy(np.einsum("nhw,nhw->nh", x.numpy(), y.numpy()))


def total(x: Tensor) -> Tensor:
    """Sum over the last dimension, the same for a row whatever lies beside it."""
    # torch's CPU sums each row by itself; a GPU's way depends on how many rows there are
    return x.sum(-1) if x.device.type == "cpu" else folded(x, -1)


def folded(x: Tensor, dim: int) -> Tensor:
    """Sum over a dimension by adding its halves again and again, which is elementwise."""
    while (length := x.shape[dim]) > 1:
        half, odd = length // 2, length % 2
        halves = x.narrow(dim, 0, half) + x.narrow(dim, half, half)
        x = torch.cat([halves, x.narrow(dim, 2 * half, 1)], dim) if odd else halves
    return x.squeeze(dim)
