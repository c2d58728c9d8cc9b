"""A picture in overlapping tiles: where they lie, and how what a function makes of each becomes one picture again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

SAMPLED, SAMPLES = 1 / 16, 4


@dataclass(frozen=True)
class Tiling:
    """How large tiles are; both in pixels, each rounded up to the model's `size_multiple`.

    Attributes:
        pixels: a tile's side. A side of the picture that isn't longer than that isn't cut.
        overlap: what neighbours share at least. In the outer quarter of it a tile counts for nothing, because its
            networks lack context there, and in the half between it fades into its neighbour.
    """

    pixels: int = 512
    overlap: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.pixels:
            raise ValueError(f"tiles of {self.pixels} pixels that overlap by {self.overlap}: 0 <= overlap < tile")


def positions(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of a line begin: `tile - overlap` apart, the last one aligned to the end.

    A line that is no longer than a tile has one tile, which is as long as the line.

    Raises:
        ValueError: not 0 <= overlap < tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} that overlap by {overlap}: 0 <= overlap < tile")
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def window(length: int, overlap: float, first: bool, last: bool) -> Tensor:
    """A tile's weight along one axis, float32 [length] in [0, 1].

    From an edge inwards 0 for a quarter of `overlap`, a sin² over the half between, then 1; two tiles that share
    just `overlap` add up to 1. An edge of the picture (the first or last tile's) has weight 1.
    """
    centres = torch.arange(length, dtype=torch.float64) + 0.5

    def ramp(distance: Tensor) -> Tensor:
        return (math.pi / 2 * (2 * distance / overlap - 0.5).clamp(0, 1)).sin().square()

    weight = torch.ones_like(centres)
    if overlap and not first:
        weight = weight * ramp(centres)
    if overlap and not last:
        weight = weight * ramp(length - centres)
    return weight.float()


@dataclass(frozen=True)
class Pieces:
    """A sample of a picture: pieces of `height` x `width` cells at `corners` (top, left).

    Attributes:
        tile: height and width of the picture's tiles; picture: its own.
    """

    height: int
    width: int
    corners: list[tuple[int, int]]
    tile: tuple[int, int]
    picture: tuple[int, int]

    def shrunk(self, factor: int) -> Pieces:
        """The same pieces in cells `factor` times as large. All sides and places must be multiples of it."""
        corners = [(top // factor, left // factor) for top, left in self.corners]
        (tile_height, tile_width), (height, width) = self.tile, self.picture
        return Pieces(
            self.height // factor,
            self.width // factor,
            corners,
            (tile_height // factor, tile_width // factor),
            (height // factor, width // factor),
        )

    @property
    def coverage(self) -> float:
        """How much of the picture they are, from 0 to 1."""
        return len(self.corners) * self.height * self.width / math.prod(self.picture)

    def cut(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B * pieces, C, height, width], the pieces of a picture one after the other."""
        pieces = [x[..., top : top + self.height, left : left + self.width] for top, left in self.corners]
        return torch.stack(pieces, 1).flatten(0, 1)


def _strata(height: int, width: int, count: int) -> tuple[int, int]:
    """Rows and columns that cut height x width into at most `count` parts, many of them and near to squares."""

    def cost(rows: int) -> float:
        columns = count // rows
        return abs(math.log(height / rows * columns / width)) + 2 * math.log(count / (rows * columns))

    rows = min(range(1, count + 1), key=cost)
    return rows, count // rows


def _centred(length: int, piece: int, count: int, multiple: int) -> list[int]:
    """Where pieces in the middle of `count` equal parts of a line begin, rounded to multiples."""
    middles = ((i + 0.5) * length / count - piece / 2 for i in range(count))
    return [min(max(round(m / multiple) * multiple, 0), length - piece) for m in middles]


@dataclass(frozen=True)
class Grid:
    """The tiles of a picture of `height` x `width` cells; `tile` and `overlap` in cells, too."""

    height: int
    width: int
    tile: int
    overlap: int

    @classmethod
    def of(cls, height: int, width: int, tiling: Tiling | None, multiple: int) -> Grid:
        """Tiles whose places and sides are multiples, of a picture whose sides are; one tile where `tiling` is None.

        Raises:
            ValueError: rounded up, the overlap is as large as the tile.
        """
        if tiling is None:
            return cls(height, width, max(height, width), 0)
        tile, overlap = (-(-v // multiple) * multiple for v in (tiling.pixels, tiling.overlap))
        if overlap >= tile:
            raise ValueError(
                f"tiles of {tiling.pixels} pixels that overlap by {tiling.overlap}: in this model's multiples of "
                f"{multiple} that is {tile} and {overlap}; choose larger tiles"
            )
        return cls(height, width, tile, overlap)

    def shrunk(self, factor: int) -> Grid:
        """The same tiles in cells `factor` times as large. All sides must be multiples of it."""
        return Grid(self.height // factor, self.width // factor, self.tile // factor, self.overlap // factor)

    @cached_property
    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of each tile, row by row."""
        down, across = (positions(length, self.tile, self.overlap) for length in (self.height, self.width))
        return list(product(down, across))

    def samples(self, multiple: int) -> list[Pieces]:
        """Pieces that are spread evenly over the picture, at multiples; each sample has at most a tile's pixels.

        Empty for a single tile; else one, or as many as make up `SAMPLED` of the picture, at most `SAMPLES`. Pieces are
        half a tile long: larger ones would be few, and smaller ones mostly edge.
        """
        if len(self.corners) == 1:
            return []
        tile = min(self.tile, self.height), min(self.tile, self.width)
        side = max(self.tile // 2 // multiple, 1) * multiple
        height, width = min(side, self.height), min(side, self.width)
        each = tile[0] * tile[1] // (height * width)
        share = each * height * width / (self.height * self.width)
        samples = max(1, min(SAMPLES, round(SAMPLED / share)))
        rows, columns = _strata(self.height, self.width, samples * each)
        down, across = _centred(self.height, height, rows, multiple), _centred(self.width, width, columns, multiple)
        corners = list(product(down, across))
        parts = [corners[i::samples] for i in range(min(samples, len(corners)))]
        return [Pieces(height, width, part, tile, (self.height, self.width)) for part in parts]

    def map(self, f: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
        """What `f` makes of each tile and its number, blended: weights are the tiles' windows, over their sum.

        Args:
            f: [B, C, h, w] -> [B, D, s h, s w] on any device, with one factor s for all tiles.
            x: [B, C, height, width].

        Returns:
            float32 [B, D, s height, s width] on the device of `x`, as is the sum that is built up. Of a single tile
            it is what `f` returned, to the bit.
        """
        if len(self.corners) == 1:
            return f(x, 0).to(x.device, torch.float32)
        total = weights = torch.empty(0)
        for i, (top, left) in enumerate(self.corners):
            tile = x[..., top : top + self.tile, left : left + self.tile]
            output = f(tile, i).to(x.device, torch.float32)
            scale = output.shape[-1] / tile.shape[-1]
            if i == 0:
                size = round(self.height * scale), round(self.width * scale)
                total = output.new_zeros(*output.shape[:-2], *size)
                weights = output.new_zeros(size)
            (rows, down), (columns, across) = (
                self._along(length, start, scale) for length, start in ((self.height, top), (self.width, left))
            )
            weight = (down[:, None] * across).to(x.device)
            total[..., rows, columns] += output * weight
            weights[rows, columns] += weight
        return total.div_(weights)

    def _along(self, length: int, start: int, scale: float) -> tuple[slice, Tensor]:
        """Where a tile lies along an axis of the output, and its window there."""
        side = min(self.tile, length)
        begin, end = round(start * scale), round((start + side) * scale)
        return slice(begin, end), window(end - begin, self.overlap * scale, start == 0, start + side == length)
