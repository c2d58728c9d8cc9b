"""A contact sheet: a few pairs of each split, degraded above original, to look at before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from restoration.datasets.check import SplitReport
from restoration.images import ImageError, Pixels

PAPER, INK, FAINT = (255, 255, 255), (32, 36, 44), (178, 60, 48)
GAP, TEXT = 8, 18


def contact_sheet(splits: Sequence[SplitReport], side: int = 192) -> Image.Image:
    """All shown pairs of all splits, a row for each view and one for the originals; `side` pixels wide each.

    A picture that can't be read is an empty frame with the reason's first words.

    Raises:
        ValueError: no split shows a pair.
    """
    shown = [split for split in splits if split.shown]
    if not shown:
        raise ValueError("contact_sheet: no pair to show")
    return stacked([_block(split, side) for split in shown], PAPER)


def stacked(parts: Sequence[Image.Image], paper: str | tuple[int, int, int]) -> Image.Image:
    """One below the other, at the left, on paper of that colour."""
    sheet = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), paper)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    return sheet


def _block(split: SplitReport, side: int) -> Image.Image:
    columns = [list(dict.fromkeys(pair.files)) for pair in split.shown]  # of a loose picture only one
    rows = max(map(len, columns))
    block = Image.new("RGB", (GAP + len(columns) * (side + GAP), 2 * TEXT + rows * (side + GAP) + GAP), PAPER)
    draw, font = ImageDraw.Draw(block), ImageFont.load_default(13)
    draw.text((GAP, 2), f"{split.split}, {split.pairs:,}", INK, font)
    for place, (pair, files) in enumerate(zip(split.shown, columns, strict=True)):
        left = GAP + place * (side + GAP)
        draw.text((left, TEXT + 2), pair.image_id[-side // 8 :], INK, font)
        for row, (path, reader) in enumerate(files):
            top = 2 * TEXT + row * (side + GAP)
            try:
                thumbnail = Image.fromarray(_eight_bits(reader.pixels(path)))
            except ImageError:
                draw.rectangle((left, top, left + side - 1, top + side - 1), outline=FAINT)
                draw.text((left + GAP, top + GAP), "can't be read", FAINT, font)
                continue
            thumbnail.thumbnail((side, side), Image.Resampling.LANCZOS)
            block.paste(thumbnail, (left, top))
    return block


def _eight_bits(pixels: Pixels) -> np.ndarray:
    return (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
