"""Folders of results made by hand, whose figures can be worked out on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

GREYS = {"00690": 60, "00691": 80, "00692": 100, "00693": 120, "00694": 140, "00695": 160}
SIZE = (48, 64)  # height, width
GOOD, BAD = 4, 8  # levels by which two methods are too bright


class Level:
    """Scores a picture by its mean level, so that a distance of scores is one of brightness."""

    name, version, range = "level", "1", (0.0, 255.0)

    def score(self, images: np.ndarray) -> np.ndarray:
        return np.asarray(images.mean((1, 2, 3)), dtype=np.float32)


LEVEL = f"{__name__}:Level"


def grey(level: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((*size, 3), level, np.uint8)


def textured(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (*size, 3), dtype=np.uint8)


def write(folder: Path, pictures: Mapping[str, np.ndarray], name: Callable[[str], str] = "{}.png".format) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, picture in pictures.items():
        Image.fromarray(picture).save(folder / name(image_id))
    return folder


def greys(folder: Path, more: int = 0, only: Sequence[str] = tuple(GREYS)) -> Path:
    """Grey pictures, all `more` levels too bright."""
    return write(folder, {image_id: grey(GREYS[image_id] + more) for image_id in only})


def psnr(off: int) -> float:
    return float(20 * np.log10(255 / off))


def ssim(level: int, off: int) -> float:
    """Of flat pictures, in which only the means differ."""
    c1 = (0.01 * 255) ** 2
    return (2 * level * (level + off) + c1) / (level**2 + (level + off) ** 2 + c1)
