"""Images side by side, LQ | base | now | GT, with a boxed part of each enlarged below."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from restoration.datasets.sheet import stacked

Box = tuple[int, int, int, int]  # y, x, height, width

LABELS = ("input", "base", "RL", "ground truth")
PAPER, INK, FAINT, BOX = (255, 255, 255), (32, 36, 44), (112, 120, 134), (226, 76, 60)
GAP, TEXT = 8, 20


@dataclass(frozen=True)
class Strip:
    """One row of equally large uint8 images [H, W, 3].

    Attributes:
        captions: a short text under each label, such as "24.3 dB"; fewer than images means none for the rest.
        box: what the zoom shows; None chooses it (`choose_box`).
    """

    images: Sequence[np.ndarray]
    labels: Sequence[str] = LABELS
    captions: Sequence[str] = ()
    box: Box | None = None
    title: str = ""


def draw_strips(strips: Sequence[Strip], width: int = 256) -> Image.Image:
    """All strips below each other.

    Args:
        width: pixels of each image and of each zoom; images are enlarged by whole factors (nearest neighbour, no
            invented detail) and larger ones are reduced.

    Raises:
        ValueError: no strip, or a strip whose images are not equally large uint8 [H, W, 3].
    """
    if not strips:
        raise ValueError("draw_strips: no strips")
    return stacked([_draw(strip, width) for strip in strips], PAPER)


def strips_png(strips: Sequence[Strip], width: int = 256) -> bytes:
    """`draw_strips` as the bytes of a PNG."""
    buffer = io.BytesIO()
    draw_strips(strips, width).save(buffer, "PNG")
    return buffer.getvalue()


def save_strips(path: Path, strips: Sequence[Strip], width: int = 256) -> Path:
    """`draw_strips` as a PNG; the folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_strips(strips, width).save(path)
    return path


def choose_box(before: np.ndarray, after: np.ndarray, target: np.ndarray, part: float = 0.25) -> Box:
    """The square, `part` of the shorter side, where `after` differs most from `before` among textured places.

    Deterministic; the middle of the image when nothing differs.
    """
    height, width = target.shape[:2]
    side = max(8, int(min(height, width) * part))
    if side >= min(height, width):
        return 0, 0, height, width
    change = np.abs(after.astype(np.float64) - before).mean(2)
    grey = target.astype(np.float64).mean(2)
    texture = np.abs(np.gradient(grey, axis=0)) + np.abs(np.gradient(grey, axis=1))
    score = _window_means(change, side) * (1 + _window_means(texture, side))
    if not score.any():
        return (height - side) // 2, (width - side) // 2, side, side
    y, x = np.unravel_index(int(score.argmax()), score.shape)
    return int(y), int(x), side, side


def zoom(image: np.ndarray, box: Box, width: int) -> Image.Image:
    """The box enlarged to about `width` pixels, by a whole factor, without interpolation."""
    y, x, h, w = box
    part = Image.fromarray(np.ascontiguousarray(image[y : y + h, x : x + w]))
    factor = max(1, width // w)
    return part.resize((w * factor, h * factor), Image.Resampling.NEAREST)


def _window_means(values: np.ndarray, side: int) -> np.ndarray:
    """Means of all side x side windows; [H-side+1, W-side+1]."""
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    return (sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]) / side**2


def _draw(strip: Strip, width: int) -> Image.Image:
    images = [np.asarray(image) for image in strip.images]
    shapes = {image.shape for image in images}
    ok = len(shapes) == 1 and all(i.dtype == np.uint8 and i.ndim == 3 and i.shape[2] == 3 for i in images)
    if not images or not ok:
        found = ", ".join(f"{i.dtype} {list(i.shape)}" for i in images) or "none"
        raise ValueError(f"a strip needs equally large uint8 [H, W, 3] images, got {found}")
    height, full_width = images[0].shape[:2]
    box = strip.box
    if box is None:
        before, after = (images[1], images[2]) if len(images) >= 4 else (images[0], images[-1])
        box = choose_box(before, after, images[-1])
    shown_height = round(height * width / full_width)
    side = round(width * box[2] / box[3])
    head = TEXT + GAP if strip.title else 0
    canvas = Image.new(
        "RGB",
        (GAP + len(images) * (width + GAP), GAP + head + TEXT + shown_height + GAP + side + 2 * GAP),
        PAPER,
    )
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    if strip.title:
        draw.text((GAP, GAP), strip.title, INK, font)
    for i, image in enumerate(images):
        left, top = GAP + i * (width + GAP), GAP + head
        label = strip.labels[i] if i < len(strip.labels) else ""
        draw.text((left, top), label, INK, font)
        if i < len(strip.captions):
            draw.text((left + width, top), strip.captions[i], FAINT, font, anchor="ra")
        top += TEXT
        canvas.paste(fit(Image.fromarray(image), width, shown_height), (left, top))
        y, x, h, w = (round(v * width / full_width) for v in box)
        draw.rectangle((left + x, top + y, left + x + w - 1, top + y + h - 1), outline=BOX, width=2)
        top += shown_height + GAP
        canvas.paste(fit(zoom(image, box, width), width, side), (left, top))
        draw.rectangle((left, top, left + width - 1, top + side - 1), outline=BOX, width=2)
    return canvas


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Of that size: enlarged without interpolation, so that no detail is invented, or reduced smoothly."""
    enlarges = width >= image.width
    return image.resize((width, height), Image.Resampling.NEAREST if enlarges else Image.Resampling.LANCZOS)
