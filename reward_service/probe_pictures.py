"""Pictures whose score everybody knows: made of whole numbers alone, so that they are the same on every machine.

Leaves that hide one another, of all sizes, with a texture whose contrast falls with its size: what makes the statistics
of photographs. No random generator is used, as its numbers may change with a library's version.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

PICTURES = 1
"""Raised whenever a pixel of them changes."""
COUNT = 3
_LEAVES = ((3, 5), (5, 9), (9, 16), (16, 24))
"""A leaf's radius is the side over the first; so many of them, the largest lie behind."""
_OCTAVES = 6
_LEAST, _MOST = 16, 239


@lru_cache(maxsize=2)
def probe_pictures(side: int) -> np.ndarray:
    """uint8 [3, side, side, 3], not to be written to: one as a photograph, the same blurred, and the same noisy."""
    clear = _scene(side)
    y, x, channel = np.ogrid[:side, :side, :3]
    noise = _hash(y, x, 90 + channel) % 61 + _hash(y, x, 95 + channel) % 61 - 60
    found = np.stack([clear, _soft(_soft(_soft(clear))), np.clip(clear + noise, _LEAST, _MOST)]).astype(np.uint8)
    found.setflags(write=False)
    return found


def _scene(side: int) -> np.ndarray:
    """int64 [side, side, 3]: leaves and texture at twice the size, four pixels to one."""
    wide = 2 * side
    texture = _texture(wide)
    picture = 128 + texture[..., None] // 2 + np.zeros(3, np.int64)
    number = 0
    for part, count in _LEAVES:
        for _ in range(count):
            number += 1
            draw = [int(_hash(np.int64(number), np.int64(i), 7)) for i in range(8)]
            radius = max(3, wide * (12 + draw[0] % 8) // (16 * part))
            top, left = draw[1] % wide - radius, draw[2] % wide - radius
            rows, columns = (slice(max(0, at), min(wide, at + 2 * radius + 1)) for at in (top, left))
            y, x = np.ogrid[rows, columns]
            inside = np.square(y - top - radius) + np.square(x - left - radius) <= radius * radius
            level, gain = 40 + draw[3] % 176, draw[4] % 4
            colour = np.array([level + draw[5 + i] % 49 - 24 for i in range(3)])
            shade = (x - left - radius) * (draw[5] % 33 - 16) // radius  # lit from a side
            leaf = colour + (shade + texture[rows, columns] * gain // 2)[..., None]
            picture[rows, columns] = np.where(inside[..., None], leaf, picture[rows, columns])
    small = picture.reshape(side, 2, side, 2, 3).sum((1, 3)) // 4
    return np.asarray(np.clip(small, _LEAST, _MOST))


def _texture(side: int) -> np.ndarray:
    """int64 [side, side], about -60 to 60: noise of cells of 1, 2, 4, ... pixels, larger ones stronger."""
    total: np.ndarray = np.zeros((side, side), np.int64)
    for octave in range(_OCTAVES):
        cell = 1 << octave
        across = np.arange(side)
        at, part = across // cell, across % cell
        y, x = at[:, None], at[None, :]
        down, right = part[:, None], part[None, :]
        corners = [[_hash(y + i, x + j, octave) % 256 - 128 for j in (0, 1)] for i in (0, 1)]
        upper = corners[0][0] * (cell - right) + corners[0][1] * right
        lower = corners[1][0] * (cell - right) + corners[1][1] * right
        total = total + (upper * (cell - down) + lower * down) * (octave + 2) // (cell * cell)
    return total // 16


def _soft(picture: np.ndarray) -> np.ndarray:
    """Each pixel with its neighbours, 1 2 1 along both sides."""
    for axis in (0, 1):
        around = np.pad(picture, [(1, 1) if axis == i else (0, 0) for i in range(3)], mode="edge")
        n = picture.shape[axis]
        before, after = (np.take(around, range(start, start + n), axis) for start in (0, 2))
        picture = (before + 2 * picture + after + 2) // 4
    return picture


def _hash(a: np.ndarray | np.int64, b: np.ndarray | np.int64, seed: int | np.ndarray) -> np.ndarray:
    """Whole numbers 0 to 2^31 - 1 without order, of two coordinates and a seed."""
    mixed = np.asarray((a * 73856093) ^ (b * 19349663) ^ (np.asarray(seed, np.int64) * 83492791))
    for _ in range(2):
        mixed = mixed & 0x7FFFFFFF
        mixed = ((mixed >> 15) ^ mixed) * 0x2C1B3C6D
    mixed = mixed & 0x7FFFFFFF
    return np.asarray((mixed >> 13) ^ mixed)
