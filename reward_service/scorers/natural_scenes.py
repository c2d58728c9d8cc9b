"""Statistics of natural scenes, computed as LIVE's MATLAB programs of BRISQUE and NIQE do.

Everything takes many pictures of one size and gives each the numbers that it has alone: arithmetic is elementwise, in
float64, and the order of a sum depends on how much is added only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor

from reward_service.scorers.pixel_sums import blurred, halved, levels, pair_sums, root
from reward_service.scorers.room import Room

Border = Literal["zeros", "replicate"]
Part = TypeVar("Part")

GREY = tuple(np.linalg.inv([[1.0, 0.956, 0.621], [1.0, -0.272, -0.647], [1.0, -1.106, 1.703]])[0].tolist())
"""MATLAB's weights of red, green and blue: the first row of the inverse of its matrix to NTSC's colours."""
REACH, SIGMA = 3, 7 / 6
"""Of the Gaussian window, in pixels: 7 x 7."""
_BELL = np.exp(-np.square(np.arange(REACH + 1)) / (2 * SIGMA**2))
BLUR = (_BELL / (2 * _BELL.sum() - 1)).tolist()
"""The window's weights along one side, from the centre outwards."""
_NEAR, _FAR = np.array([0.25, 0.75]), np.array([1.25, 1.75])
_CUBIC = np.concatenate([1.5 * _NEAR**3 - 2.5 * _NEAR**2 + 1, -0.5 * _FAR**3 + 2.5 * _FAR**2 - 4 * _FAR + 2])
HALVING = (_CUBIC / (2 * _CUBIC.sum())).tolist()
"""Weights of the pixels at a distance of 0.5, 1.5, 2.5 and 3.5 from the middle of two."""
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Rows and columns to the neighbour in a product; MATLAB's fourth of BRISQUE, (-1, 1), makes the same products."""
SHAPES = np.arange(200, 10_001) / 1000
"""Of generalised Gaussians, which are tried."""
GAUSSIAN = 1800
"""Index of the shape 2."""
MIDDLE = 128.0
"""Level that pixels are counted from while they are blurred."""
EVEN, UNIT = {torch.float32: 1e-4, torch.float64: 1e-9}, 2.0**-52
"""Levels less their neighbourhood's mean are rounding errors below the first; the second is one, of a level."""
PIXELS_AT_ONCE = 1 << 18
"""Of the pictures that a thread of a CPU takes at once: enough that calls cost little beside what they do."""


class Fit(NamedTuple):
    """An asymmetric generalised Gaussian for each set of numbers, by its moments.

    Attributes:
        shape: one of `SHAPES`; 2 is a Gaussian.
        left, right: deviation from 0 of the numbers below and above it.
        scale: what makes of a deviation the distribution's own width.
        mean: of the distribution.
        one_sided: all numbers are on one side of 0.
    """

    shape: Tensor
    left: Tensor
    right: Tensor
    scale: Tensor
    mean: Tensor
    one_sided: Tensor


class Sums(NamedTuple):
    """Of the numbers of each set: how many, sums of |x|, x^2 and x|x|, and how many are below and above 0."""

    number: int
    absolute: Tensor
    square: Tensor
    signed: Tensor
    below: Tensor
    above: Tensor


def in_parts(work: Callable[[Tensor], Part], images: np.ndarray, device: torch.device) -> list[Part]:
    """What `work` makes of uint8 [N, H, W, 3], a part of the pictures at a time.

    On a CPU as many threads as torch may use each take some at once; another device takes all.
    """
    if device.type != "cpu":
        return [work(torch.tensor(images, device=device))]
    threads, each = torch.get_num_threads(), images.shape[1] * images.shape[2]
    step = max(1, min(PIXELS_AT_ONCE // each, -(-len(images) // threads)))
    # copied by NumPy: threads that torch makes for it would go on turning for a while, on cores that are wanted here
    parts = [images[start : start + step] for start in range(0, len(images), step)]
    if threads == 1 or len(parts) == 1:
        return [work(torch.from_numpy(part.copy())) for part in parts]

    @torch.inference_mode()  # each thread has its own mode
    def quietly(part: np.ndarray) -> Part:
        return work(torch.from_numpy(part.copy()))

    try:
        # threads of torch's own within each of these would wait for one another
        with ThreadPoolExecutor(min(threads, len(parts)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(quietly, parts))
    finally:
        torch.set_num_threads(threads)  # what threads of later begin with


def grey(images: Tensor, dtype: torch.dtype = torch.float64, room: Room | None = None) -> Tensor:
    """uint8 [N, H, W, 3] -> whole levels 0 to 255, [N, H, W], as MATLAB's rgb2gray."""
    # no colour's level comes nearer than 4e-6 to the middle of two whole ones: rounding errors don't matter
    return levels(images, GREY, dtype, room)


def normalised(x: Tensor, border: Border, signed: bool = True, room: Room | None = None) -> Tensor:
    """Levels [N, H, W] -> its pixels less their neighbourhood's mean, over its deviation plus one.

    In an even patch nothing but rounding is left, of one sign, which MATLAB's sums count as above 0 in every product
    of neighbours. It is put there, one unit of the last place, so that no device's rounding changes a score.

    Args:
        signed: signs are counted; else even patches keep their rounding errors.
        room: for what it returns, and what it needs for it.
    """
    room = room or Room()
    count, high, wide = x.shape
    found = room.take(x, *x.shape)
    with room.lent():
        around = room.take(x, count, high + 2 * REACH, wide + 2 * REACH)
        centred = around[:, REACH:-REACH, REACH:-REACH]
        torch.sub(x, MIDDLE, out=centred)  # squares of smaller numbers keep more digits
        _fill_border(around, border)
        squared = torch.mul(around, around, out=room.take(x, *around.shape))
        mean, square = blurred(around, BLUR, room), blurred(squared, BLUR, room)
        deviation = square.addcmul_(mean, mean, value=-1).abs_().sqrt_().add_(1)
        rest = centred.sub_(mean)
        if signed:
            torch.hardshrink(rest, EVEN[x.dtype], out=found)
            rest = found.add_(x, alpha=UNIT)  # the unit is nothing elsewhere
        return torch.div(rest, deviation, out=found)


def _fill_border(around: Tensor, border: Border) -> None:
    """What lies around pictures [N, H + 2 R, W + 2 R]."""
    if border == "zeros":
        for side in (around[:, :REACH], around[:, -REACH:], around[..., :REACH], around[..., -REACH:]):
            side.fill_(-MIDDLE)
        return
    for dim in (1, 2):
        size = around.shape[dim]
        around.narrow(dim, 0, REACH).copy_(around.narrow(dim, REACH, 1).expand_as(around.narrow(dim, 0, REACH)))
        around.narrow(dim, size - REACH, REACH).copy_(
            around.narrow(dim, size - REACH - 1, 1).expand_as(around.narrow(dim, 0, REACH))
        )


def half_size(x: Tensor, room: Room | None = None) -> Tensor:
    """[N, H, W], sides of at least 4 -> half the size, odd sides rounded up, as MATLAB's imresize(x, 0.5).

    A cubic twice as wide as for enlarging, so that it blurs what half the pixels can't show; mirrored at the border.
    """
    return halved(x, HALVING, room)


def sums(x: Tensor, room: Room | None = None) -> Sums:
    """[N, H, W] -> sums, float64 [5, N]: of the pixels, and of their products with the neighbours at `SHIFTS`.

    What lies beyond a border is the other end of the picture.
    """
    room = room or Room()
    count, high, wide = x.shape
    size = (count, high + 1, wide + 2)
    # the picture, a row above it and a column on each side, each from its other end; and with columns of zeros
    with room.lent():
        planes = room.take(x, 2, 2 + math.prod(size))
        planes[:, 0] = planes[:, -1] = 0
        pair = planes[:, 1:-1].view(2, *size)
        pair[:, :, 1:, 1:-1] = x
        pair[:, :, 0] = pair[:, :, -1]
        around, inner = pair
        around[:, :, 0], around[:, :, -1] = around[:, :, -2], around[:, :, 1]
        inner[:, :, 0] = inner[:, :, -1] = 0
        # of a product x*y, each of |xy|, (xy)^2, xy|xy| and its sign is the product of what it is for x and for y
        positive = torch.abs(planes, out=room.take(x, *planes.shape))
        other = room.take(x, *planes.shape)
        absolute = pair_sums(positive, size, SHIFTS)
        square = pair_sums(torch.mul(planes, planes, out=other), size, SHIFTS)
        signed = pair_sums(torch.mul(planes, positive, out=other), size, SHIFTS)
        sign = pair_sums(torch.sign(planes, out=other), size, SHIFTS)
        # a picture has zeros only where it is black: mostly none, and whole numbers are added exactly in any way
        black = bool(positive[0, 1:-1].amin() == 0)
        nonzero = pair_sums(other.abs_(), size, SHIFTS) if black else high * wide
    return Sums(high * wide, absolute, square, signed, (nonzero - sign) / 2, (nonzero + sign) / 2)


def joined(parts: Sequence[Sums]) -> Sums:
    """Of pictures of one size, those of several parts of them."""
    number, *columns = zip(*parts, strict=True)
    return Sums(number[0], *(torch.cat(column, 1) for column in columns))


def fit(of: Sums) -> Fit:
    """An asymmetric generalised Gaussian for each set.

    Numbers that are on one side of 0 only, as in an even picture, count as a Gaussian without any spread on the other.
    """
    left = root(((of.square - of.signed) / 2 / of.below).clamp_(min=0))
    right = root(((of.square + of.signed) / 2 / of.above).clamp_(min=0))
    one_sided = (of.below == 0) | (of.above == 0) | (left == 0) | (right == 0)
    left, right = left.nan_to_num_(0.0), right.nan_to_num_(0.0)
    ratio = torch.where(one_sided, 1.0, left / right)
    wanted = of.absolute.square() / (of.square * of.number)
    wanted = wanted * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
    table = _table(of.square.device)
    index = torch.where(one_sided, GAUSSIAN, _nearest(table.rising, wanted))
    scale = table.scale[index]
    mean = torch.where(one_sided, 0.0, (right - left) * scale * table.offset[index])
    return Fit(table.shape[index], left, right, scale, mean, one_sided)


def symmetric_shape(number: int, absolute: Tensor, square: Tensor) -> Tensor:
    """Shape of a generalised Gaussian by the sums of its numbers; numbers that are all 0 count as a Gaussian."""
    table = _table(square.device)
    wanted = square * number / absolute.square()
    index = _nearest(table.falling, -wanted)
    return table.shape[torch.where(absolute == 0, GAUSSIAN, index)]


class _Table(NamedTuple):
    shape: Tensor
    rising: Tensor  # (E|x|)^2 / E(x^2) of a generalised Gaussian of that shape
    falling: Tensor  # -1 / rising, which rises too
    scale: Tensor
    offset: Tensor


@lru_cache
def _table(device: torch.device) -> _Table:
    one, two, three = (gammaln(k / SHAPES) for k in (1, 2, 3))
    rising = np.exp(2 * two - one - three)
    columns = (SHAPES, rising, -1 / rising, np.exp((one - three) / 2), np.exp(two - one))
    return _Table(*(torch.from_numpy(c).to(device) for c in columns))


def _nearest(rising: Tensor, wanted: Tensor) -> Tensor:
    """Index of the nearest value of a table, the lower one's of two as near."""
    above = torch.searchsorted(rising, wanted.contiguous()).clamp_(1, len(rising) - 1)
    return torch.where(wanted - rising[above - 1] <= rising[above] - wanted, above - 1, above)
