"""What a column of figures is called, which way is better, and how many digits papers give it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

AT = "@"  # between a figure and its protocol, where there are several: psnr@derain_y
Place = Literal["", "best", "second"]

_LOWER = ("lpips", "dists", "fid", "lite0_distance", "lite0_frechet")
_KNOWN = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 3), "aligned": ("aligned", 3)}
_DIGITS = {"lpips": 4, "dists": 4, "fid": 2, "lite0_distance": 4, "lite0_frechet": 2}


@dataclass(frozen=True)
class Column:
    """One figure.

    Attributes:
        key: as rows have it, such as `psnr`, `psnr@derain_y`, `lpips_vgg`, `fid` or a scorer's name.
    """

    key: str

    @property
    def figure(self) -> str:
        return self.key.partition(AT)[0]

    @property
    def _kind(self) -> str:
        """`fid` of `fid_patch256`."""
        return self.figure if self.figure in _LOWER else self.figure.split("_")[0]

    @property
    def label(self) -> str:
        figure, _, protocol = self.key.partition(AT)
        name = _KNOWN[figure][0] if figure in _KNOWN else figure
        if self._kind in ("lpips", "dists", "fid"):
            name = name.replace(self._kind, self._kind.upper(), 1)
        return f"{name} ({protocol})" if protocol else name

    @property
    def lower(self) -> bool:
        """Whether less is better; of every scorer of the house more is."""
        return self._kind in _LOWER

    @property
    def digits(self) -> int:
        return _KNOWN[self.figure][1] if self.figure in _KNOWN else _DIGITS.get(self._kind, 3)

    def text(self, value: float) -> str:
        return "-" if math.isnan(value) else f"{value:.{self.digits}f}"


def places(values: Sequence[float], column: Column) -> list[Place]:
    """The best and the second best of a column, as far as its digits tell them apart; NaN has no place.

    Equal ones share a place. Without a figure that is worse nothing is best.
    """
    shown = [math.nan if math.isnan(v) else float(column.text(v)) for v in values]
    order = sorted({v for v in shown if not math.isnan(v)}, reverse=not column.lower)
    if len(order) < 2:
        return ["" for _ in shown]
    return ["best" if v == order[0] else "second" if v == order[1] else "" for v in shown]
