"""Statistics of natural scenes, computed as LIVE's MATLAB programs of BRISQUE and NIQE do.

Everything takes many pictures of one size and gives each the numbers that it has alone: arithmetic is elementwise, in
float64, and the order of a sum depends on how much is added only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor
from torch.nn import functional

Border = Literal["zeros", "replicate"]

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
EVEN, UNIT = 1e-9, 2.0**-52
"""Levels less their neighbourhood's mean are rounding errors below the first; the second is one, of a level."""
CACHED_PIXELS = 1 << 15
"""Of pictures that are computed at once on a CPU: their planes stay in its cache."""


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


def chunks(images: np.ndarray, device: torch.device, pixels: int = CACHED_PIXELS) -> Iterator[Tensor]:
    """uint8 [N, H, W, 3] in parts that a CPU's cache holds; all at once on another device."""
    step = max(1, pixels // (images.shape[1] * images.shape[2])) if device.type == "cpu" else len(images)
    for start in range(0, len(images), step):
        yield torch.tensor(images[start : start + step], device=device)


def grey(images: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> whole levels 0 to 255, float64 [N, H, W], as MATLAB's rgb2gray."""
    level = images[..., 0].double() * GREY[0]
    for channel in (1, 2):
        level += images[..., channel].double() * GREY[channel]
    return level.add_(0.5).floor_()


def normalised(x: Tensor, border: Border) -> Tensor:
    """float64 [N, H, W] -> its pixels less their neighbourhood's mean, over its deviation plus one.

    In an even patch nothing but rounding is left, of one sign, which MATLAB's sums count as above 0 in every product
    of neighbours. It is put there, one unit of the last place, so that no device's rounding changes a score.
    """
    sides = (REACH,) * 4
    around = functional.pad(x, sides) if border == "zeros" else functional.pad(x[:, None], sides, "replicate")[:, 0]
    mean = _blurred(around)
    deviation = _blurred(around.square()).sub_(mean.square()).abs_().sqrt_()
    rest = x - mean
    return torch.where(rest.abs() < EVEN, x * UNIT, rest).div_(deviation.add_(1))


def halved(x: Tensor) -> Tensor:
    """float64 [N, H, W], sides of at least 4 -> half the size, odd sides rounded up, as MATLAB's imresize(x, 0.5).

    A cubic twice as wide as for enlarging, so that it blurs what half the pixels can't show; mirrored at the border.
    """
    for dim in (-2, -1):
        old, new = x.shape[dim], (x.shape[dim] + 1) // 2
        around = mirrored(x, dim, 3, 3 + old % 2)
        taps = [_every_second(around.narrow(dim, tap, 2 * new - 1), dim) for tap in range(8)]
        x = (taps[3] + taps[4]).mul_(HALVING[0])
        for k in (1, 2, 3):
            x += (taps[3 - k] + taps[4 + k]).mul_(HALVING[k])
    return x


def mirrored(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """`x` with so much more along a dimension, the border's pixel twice."""
    if before == after == 0:
        return x
    size = x.shape[dim]
    order = [*range(before - 1, -1, -1), *range(size), *range(size - 1, size - 1 - after, -1)]
    return x.index_select(dim, torch.tensor(order, device=x.device))


def _every_second(x: Tensor, dim: int) -> Tensor:
    return x[..., ::2, :] if dim == -2 else x[..., ::2]


def _blurred(x: Tensor) -> Tensor:
    """[N, H + 6, W + 6] -> [N, H, W]."""
    for dim in (-2, -1):
        length = x.shape[dim] - 2 * REACH
        out = x.narrow(dim, REACH, length) * BLUR[0]
        for k in range(1, REACH + 1):
            out += (x.narrow(dim, REACH - k, length) + x.narrow(dim, REACH + k, length)).mul_(BLUR[k])
        x = out
    return x


def sums(x: Tensor) -> Sums:
    """float64 [N, H, W] -> sums [5, N]: of the pixels, and of their products with the neighbours at `SHIFTS`.

    What lies beyond a border is the other end of the picture.
    """
    high, wide = x.shape[1:]
    x = torch.cat([x[:, -1:], x], 1)
    x = torch.cat([x[..., -1:], x, x[..., :1]], 2)
    size = x.abs()
    # of a product x*y, each of |xy|, (xy)^2, xy|xy| and its sign is the product of what it is for x and for y
    planes = torch.stack([size, x.square(), x * size, x.sign()])
    found = _pair_sums(planes, high, wide)
    # a picture has zeros only where it is even: mostly none, and whole numbers are added exactly in any way
    nonzero = _pair_sums(planes[3:].abs(), high, wide)[0] if bool((size == 0).any()) else high * wide
    return Sums(high * wide, found[0], found[1], found[2], (nonzero - found[3]) / 2, (nonzero + found[3]) / 2)


def _pair_sums(planes: Tensor, high: int, wide: int) -> Tensor:
    """[P, N, H + 1, W + 2] -> [P, 5, N]."""
    here = planes[..., 1:, 1:-1]
    found = [total(total(here))]
    for down, right in SHIFTS:
        there = planes[..., 1 - down : 1 - down + high, 1 - right : 1 - right + wide]
        found.append(total(total(here * there)))
    return torch.stack(found, 1)


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


def fit(of: Sums) -> Fit:
    """An asymmetric generalised Gaussian for each set.

    Numbers that are on one side of 0 only, as in an even picture, count as a Gaussian without any spread on the other.
    """
    left = ((of.square - of.signed) / 2 / of.below).clamp_(min=0).sqrt_()
    right = ((of.square + of.signed) / 2 / of.above).clamp_(min=0).sqrt_()
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
