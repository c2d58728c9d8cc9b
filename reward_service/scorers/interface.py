"""What a scorer is: plain Python, no Ray, one batch of lossless images in, one number an image out."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Scorer(Protocol):
    """Judges images without a reference; higher is better.

    `version` changes whenever the same image could get another score; it is stored with every reward.
    `range` is the interval that scores lie in, infinite where unbounded.
    """

    name: str
    version: str
    range: tuple[float, float]

    def score(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB -> float32 [N]. Pure: the same image gets the same score in any batch."""
        ...


def check_block(images: Any, min_side: int = 1) -> np.ndarray:
    """Return `images` if it is a uint8 [N, H, W, 3] array with N >= 1 and sides of at least `min_side`.

    Raises:
        ValueError: anything else; the message names what was found.
    """
    wanted = "a block is a uint8 array [N, H, W, 3]"
    if not isinstance(images, np.ndarray):
        raise ValueError(f"{wanted}, not {type(images).__name__}")
    if images.dtype != np.uint8:
        raise ValueError(f"{wanted}, not {images.dtype}: round and clamp float images first")
    if images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"{wanted}, not of shape {list(images.shape)}")
    if images.shape[0] == 0:
        raise ValueError(f"{wanted} with N >= 1; this one is empty")
    if min(images.shape[1:3]) < min_side:
        raise ValueError(f"images of {images.shape[1]}x{images.shape[2]} are too small: sides of {min_side} at least")
    return images
