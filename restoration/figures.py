"""Figures of pictures, each there or missing with its reason: a small picture costs its own figures only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from restoration.metrics import Protocol
from restoration.metrics.protocols import Images
from restoration.trouble import reason_of

Pixels: TypeAlias = NDArray[np.uint8]
Figures: TypeAlias = NDArray[np.float64] | NDArray[np.float32]
ScoreFunction = Callable[[Pixels], NDArray[np.float32]]
FIXED_FIGURES = ("psnr", "ssim")  # that every protocol has
PICTURE = "picture"  # what is missing where a picture has no figure at all
LESS_MEMORY = "restore it by `restorl restore --tile 512` and evaluate the results, or take smaller batches"


@dataclass(frozen=True)
class Row:
    """Figures of one image, in the order of the CSV's columns.

    `values` holds psnr, ssim and one column a scorer for the restored image; the same with `input_` before them
    for the degraded one, and `gt_<scorer>` for the original. One that can't be had is NaN, never 0.

    `missing` says why: name of the figure -> reason, or `PICTURE` -> reason where there is none at all.
    """

    image_id: str
    values: dict[str, float]
    missing: dict[str, str] = field(default_factory=dict)


def fixed_names(scorers: Mapping[str, ScoreFunction]) -> list[str]:
    """The columns that no model changes."""
    return [*(f"input_{f}" for f in (*FIXED_FIGURES, *scorers)), *(f"gt_{s}" for s in scorers)]


class FigureTable:
    """Figures of a block of images of one size, column by column; `errors` of a measurement become reasons."""

    def __init__(self, ids: Sequence[str], errors: tuple[type[Exception], ...]) -> None:
        self.ids, self.errors = ids, errors
        self.columns: dict[str, Sequence[float]] = {}
        self.missing: dict[str, dict[str, str]] = {image_id: {} for image_id in ids}

    def of_result(
        self,
        protocol: Protocol,
        scorers: Mapping[str, ScoreFunction],
        prefix: str,
        images: Pixels,
        originals: Pixels,
        exact: tuple[Images, Images] | None = None,
    ) -> None:
        """`exact` are image and original before they were rounded, for a protocol that takes floats."""
        compared = exact if exact is not None and protocol.takes_floats else (images, originals)
        for name, figure in protocol.figures.items():
            if not prefix or name in FIXED_FIGURES:
                self._measure(f"{prefix}{name}", figure, *compared)
        self.of_scorers(scorers, prefix, images)

    def of_scorers(self, scorers: Mapping[str, ScoreFunction], prefix: str, images: Pixels) -> None:
        for name, score in scorers.items():
            self._measure(f"{prefix}{name}", partial(_scores, name, score), images)

    def take_over(self, names: Sequence[str], known: Mapping[str, Row]) -> bool:
        """Take the columns `names` from earlier rows, if those have all of them for every image."""
        rows = [known.get(image_id) for image_id in self.ids]
        # Of a picture that could not be read or restored nothing is known, whatever its columns say.
        if not all(row and row.values.keys() >= set(names) and PICTURE not in row.missing for row in rows):
            return False
        for name in names:
            self.columns[name] = [known[image_id].values[name] for image_id in self.ids]
            for image_id in self.ids:
                if name in known[image_id].missing:
                    self.missing[image_id][name] = known[image_id].missing[name]
        return True

    def rows(self) -> Iterator[Row]:
        for i, image_id in enumerate(self.ids):
            values = {name: float(column[i]) for name, column in self.columns.items()}
            yield Row(image_id, values, self.missing[image_id])

    def _measure(self, name: str, figures: Callable[..., Figures], *images: Images) -> None:
        try:
            values = [float(value) for value in figures(*images)]
        except self.errors:
            values = [self._alone(i, name, figures, *images) for i in range(len(self.ids))]
        for image_id, value in zip(self.ids, values, strict=True):
            if not math.isfinite(value) and name not in self.missing[image_id]:
                self.missing[image_id][name] = f"a value that is not finite ({value:g})"
        self.columns[name] = [value if math.isfinite(value) else math.nan for value in values]

    def _alone(self, i: int, name: str, figures: Callable[..., Figures], *images: Images) -> float:
        try:
            return float(figures(*(block[i : i + 1] for block in images))[0])
        except self.errors as error:
            self.missing[self.ids[i]][name] = reason_of(error, LESS_MEMORY)
            return math.nan


def _scores(name: str, score: ScoreFunction, images: Pixels) -> Figures:
    values = np.asarray(score(images), dtype=np.float32)
    if values.shape != (len(images),):
        raise TypeError(f"scorer {name} gave values of shape {values.shape} for {len(images)} images")
    return values
