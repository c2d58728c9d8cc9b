"""Weighted sums over pixels, each in two ways: by OpenCV and NumPy, several times as fast on a CPU, and by torch on any
device. A picture's numbers depend on its own pixels and size only, in both."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from reward_service.scorers.room import Room

STRIP = 1 << 14
"""Pixels whose colours stay in a CPU's cache."""
LINE = 1 << 10
"""Numbers that are added in their own type, about; the sums of such lines are added in float64."""


def levels(images: Tensor, weights: Sequence[float], dtype: torch.dtype, room: Room | None = None) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, H, W], the weighted sum of the colours in float64, rounded, halves up."""
    if images.device.type != "cpu":
        return levels_anywhere(images, weights, dtype)
    count, high, wide, _ = images.shape
    found = (room or Room()).take(images, count, high, wide, dtype=dtype)
    rows, rounded, kernel = (
        images.reshape(-1, wide, 3).numpy(),
        found.view(-1, wide).numpy(),
        np.array([[*weights, 0.5]]),
    )
    step = max(1, STRIP // wide)
    for start in range(0, len(rows), step):
        summed = cv2.transform(rows[start : start + step].astype(np.float64), kernel)
        np.floor(summed, out=rounded[start : start + step], casting="same_kind")
    return found


def levels_anywhere(images: Tensor, weights: Sequence[float], dtype: torch.dtype) -> Tensor:
    parts = [images[..., channel].double() * weight for channel, weight in enumerate(weights)]
    return (parts[0] + parts[1] + parts[2]).add_(0.5).floor_().to(dtype)


def blurred(x: Tensor, half: Sequence[float], room: Room | None = None) -> Tensor:
    """[N, H + 2 R, W + 2 R] -> [N, H, W], by the weights `half` (R + 1) from the centre outwards along both sides."""
    if x.device.type != "cpu":
        return blurred_anywhere(x, half)
    reach, wide = len(half) - 1, x.shape[2]
    kernel = np.array([*half[:0:-1], *half])
    found = (room or Room()).take(x, *x.shape)
    # all pictures as one, one below the other: what their borders give to one another is cut off
    cv2.sepFilter2D(x.view(-1, wide).numpy(), -1, kernel, kernel, found.view(-1, wide).numpy())
    return found[:, reach:-reach, reach:-reach]


def blurred_anywhere(x: Tensor, half: Sequence[float]) -> Tensor:
    reach = len(half) - 1
    for dim in (-2, -1):
        taps = [x.narrow(dim, tap, x.shape[dim] - 2 * reach) for tap in range(2 * reach + 1)]
        x = taps[reach] * half[0]
        for k in range(1, reach + 1):
            x.add_(taps[reach - k] * half[k]).add_(taps[reach + k] * half[k])
    return x


def halved(x: Tensor, half: Sequence[float], room: Room | None = None) -> Tensor:
    """[N, H, W], sides of at least R -> [N, H/2, W/2], odd sides rounded up.

    Each of its pixels is the sum, along both sides, of the R pixels on either side of the middle of two, by the weights
    `half` from the nearest outwards; the border's pixels are mirrored.
    """
    if x.device.type != "cpu":
        return halved_anywhere(x, half)
    room, reach, (count, high, wide) = room or Room(), len(half), x.shape
    new = (high + 1) // 2
    rows = mirrored(x, 1, reach - 1, reach - 1 + high % 2)
    taps = [rows[:, tap : tap + 2 * new - 1 : 2] for tap in range(2 * reach)]
    thin, pair = room.take(x, count, new, wide), room.take(x, count, new, wide)
    torch.add(taps[reach - 1], taps[reach], out=thin).mul_(half[0])
    for k in range(1, reach):
        thin.add_(torch.add(taps[reach - 1 - k], taps[reach + k], out=pair).mul_(half[k]))
    kernel, found = np.array([*half[::-1], *half]), pair
    cv2.sepFilter2D(
        thin.view(-1, wide).numpy(),
        -1,
        kernel,
        np.ones(1),
        found.view(-1, wide).numpy(),
        anchor=(reach - 1, 0),
        borderType=cv2.BORDER_REFLECT,
    )
    return found[:, :, ::2]


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
    if before == after == 0:
        return x
    start, end = x.narrow(dim, 0, before), x.narrow(dim, x.shape[dim] - after, after)
    return torch.cat([start.flip(dim), x, end.flip(dim)], dim)


def weighted_sums(x: Tensor, weights: Tensor) -> Tensor:
    """[N, D] by weights [V, D] -> [N, V]; no product of matrices, which rounds as their sizes will have it."""
    if x.device.type != "cpu":
        return total(x[:, None] * weights)
    columns = np.ascontiguousarray(weights.numpy().T)  # each is added to all sums at once, one after the other
    return torch.from_numpy(np.einsum("nd,dv->nv", x.numpy(), columns))


def exponential(x: Tensor) -> Tensor:
    """e to the power of each number; on a CPU without the threads that torch's own has, which go on turning."""
    return x.exp() if x.device.type != "cpu" else torch.from_numpy(np.exp(x.numpy()))


def root(x: Tensor) -> Tensor:
    """The square root of each number, likewise."""
    return x.sqrt() if x.device.type != "cpu" else torch.from_numpy(np.sqrt(x.numpy()))


def pair_sums(planes: Tensor, size: tuple[int, int, int], shifts: Sequence[tuple[int, int]]) -> Tensor:
    """Sums over each picture: of its pixels, and of the products of each with the one so many rows and columns before.

    Args:
        planes: [2, N H W + 2] between two more numbers: pictures with a row above and a column on each side, and the
            same with zeros in these columns.
        size: N, H and W, row and columns included.

    Returns:
        float64 [1 + shifts, N].
    """
    count, high, wide = size
    if planes.device.type != "cpu":
        plane, inner = planes[:, 1:-1].view(2, *size)
        here = inner[:, 1:]
        products = [total(here * plane.roll(shift, (1, 2))[:, 1:]) for shift in shifts]
        return total(torch.stack([total(here), *products]).double())
    # A picture is one line of numbers, in which a neighbour is so many places before; of a zero at a side it doesn't
    # matter which. What is added in the planes' own type is some rows.
    rows = next(n for n in range(max(1, LINE // wide), 0, -1) if (high - 1) % n == 0)
    shape, item = (count, (high - 1) // rows, rows * wide), planes.itemsize
    strides = (high * wide * item, rows * wide * item, item)
    theirs, ours = planes.numpy()

    def lines(plane: np.ndarray, back: int) -> np.ndarray:
        return np.ndarray(shape, plane.dtype, plane, (1 + wide - back) * item, strides)

    here = lines(ours, 0)
    found = [np.einsum("npl->np", here)]
    found += [np.einsum("npl,npl->np", here, lines(theirs, down * wide + right)) for down, right in shifts]
    return total(torch.from_numpy(np.stack(found)).double())


def total(x: Tensor) -> Tensor:
    """Sum over the last dimension, the same for a row whatever lies beside it."""
    # torch's CPU sums each row by itself; a GPU's way depends on how many rows there are
    return x.sum(-1) if x.device.type == "cpu" else folded(x, -1)


def folded(x: Tensor, dim: int, room: Room | None = None) -> Tensor:
    """Sum over a dimension by adding its halves again and again, which is elementwise."""
    room = room or Room()
    while (length := x.shape[dim]) > 1:
        half, odd = length // 2, length % 2
        first, second = x.narrow(dim, 0, half), x.narrow(dim, half, half)
        halves = torch.add(first, second, out=room.take(x, *first.shape))
        x = torch.cat([halves, x.narrow(dim, 2 * half, 1)], dim) if odd else halves
    return x.squeeze(dim)
