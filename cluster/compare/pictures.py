"""Which pictures a comparison shows, and which part of them enlarged: where the methods differ most, or as asked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.compare.columns import Column
from cluster.compare.measured import Comparison, Measured, spread
from cluster.report.strips import Box, Strip, choose_box
from restoration.datasets.matching import some
from restoration.datasets.paired import PairedFolder
from restoration.figures import Pixels
from restoration.images import ImageError, to_uint8

TRUTH = "ground truth"
LEAST_SIDE = 4  # pixels of a crop


@dataclass(frozen=True)
class Crop:
    """A picture to show; `box` (y, x, height, width) is what is enlarged of it, None where the methods differ most."""

    image_id: str
    box: Box | None = None

    @classmethod
    def parse(cls, text: str) -> Crop:
        """ID, or ID:X,Y,WIDTH,HEIGHT.

        Raises:
            ValueError: no such form.
        """
        image_id, _, place = text.rpartition(":")
        if not image_id:
            return cls(text)
        if re.fullmatch(r"\d+,\d+,\d+,\d+", place) is None:
            raise ValueError(f"crop {text!r}: give ID, or ID:X,Y,WIDTH,HEIGHT in pixels, such as 00690:120,40,64,64")
        x, y, width, height = map(int, place.split(","))
        if min(width, height) < LEAST_SIDE:
            raise ValueError(f"crop {text!r}: at least {LEAST_SIDE} px a side")
        return cls(image_id, (y, x, height, width))


def where_methods_differ(images: Sequence[Pixels], truth: Pixels) -> Box:
    """The textured square in which uint8 [H, W, 3] of one size lie furthest apart."""
    stack = np.stack(images)
    return choose_box(stack.min(0), stack.max(0), truth)


def check_crops(data: PairedFolder, asked: Sequence[Crop]) -> None:
    """Before anything is measured.

    Raises:
        ValueError: a picture that isn't there, or a crop that leaves it.
    """
    sizes = {pair.image_id: pair for pair in data.pairs}
    for crop in asked:
        if crop.image_id not in sizes:
            raise ValueError(f"crop of {crop.image_id!r}: no such picture; there are {some(data.image_ids, 3)}")
        try:
            height, width = sizes[crop.image_id].size
        except ImageError:
            continue  # told where it is measured
        if crop.box is not None and (crop.box[0] + crop.box[2] > height or crop.box[1] + crop.box[3] > width):
            y, x, h, w = crop.box
            raise ValueError(f"crop of {crop.image_id}: {x},{y},{w},{h} leaves the picture, which has {width}x{height}")


def shown_crops(comparison: Comparison, count: int, asked: Sequence[Crop]) -> list[Crop]:
    """Those asked for, and after them the pictures in which the methods lie furthest apart in the first figure.

    Without those that a method has no readable result of.
    """
    readable = _readable(comparison)
    apart = spread(comparison, comparison.columns[0].key)
    # Of methods that don't differ any picture is as good: then the first ones.
    order = sorted((i for i in comparison.image_ids if i in readable), key=lambda i: -apart.get(i, -1.0))
    more = [Crop(i) for i in order if i not in {crop.image_id for crop in asked}]
    return [*(c for c in asked if c.image_id in readable), *more[: max(0, count - len(asked))]]


def strips(comparison: Comparison, crops: Sequence[Crop]) -> list[Strip]:
    """A strip of each crop: the degraded picture if there is one, the methods, the original; with the first figure."""
    column = comparison.columns[0]
    found = []
    for crop in crops:
        images = pictures_of(comparison, crop.image_id)
        truth = images[TRUTH]
        methods = [images[m.method.name] for m in comparison.methods]
        box = crop.box or where_methods_differ(methods, truth)
        captions = tuple(_caption(m, column, crop.image_id) for m in comparison.measured)
        found.append(Strip(list(images.values()), tuple(images), captions, box, crop.image_id))
    return found


def pictures_of(comparison: Comparison, image_id: str) -> Mapping[str, Pixels]:
    """Each method's result by its name, uint8 [H, W, 3], and the original last."""
    images: dict[str, Pixels] = {}
    for measured in comparison.measured:
        result, truth = (to_uint8(image) for image in measured.method.data.load(image_id))
        images[measured.method.name] = result
    return images | {TRUTH: truth}


def _readable(comparison: Comparison) -> set[str]:
    """Pictures of which every method has some figure against the original."""
    rows = [{row.image_id: row for row in m.rows} for m in comparison.measured]
    return {
        i for i in comparison.image_ids if all(any(not math.isnan(v) for v in of[i].values.values()) for of in rows)
    }


def _caption(measured: Measured, column: Column, image_id: str) -> str:
    value = measured.column(column.key)[image_id]
    return f"{column.text(value)}{' dB' if column.figure == 'psnr' and not math.isnan(value) else ''}"
