"""What a scorer is: plain Python, no Ray, one batch of lossless images in, one number an image out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

MEMORY_SIDE = 512
"""Side of the pictures that a memory estimate is for, of a scorer that takes any size."""


@runtime_checkable
class Scorer(Protocol):
    """Judges images without a reference; higher is better.

    `version` changes whenever the same image could get another score; it is stored with every reward.
    `range` is the interval that scores lie in, infinite where unbounded.

    A class may say more of itself by attributes, or properties, of the names in `Traits`.
    """

    name: str
    version: str
    range: tuple[float, float]

    def score(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB -> float32 [N]. Pure: the same image gets the same score in any batch.

        NaN for a picture that has no score; raise if nothing can be scored.
        """
        ...


@dataclass(frozen=True)
class Traits:
    """What a scorer says of itself beside `Scorer`; the defaults are for one that says nothing.

    Attributes:
        preferred_batch: pictures of one call that fill the device; a larger call costs nothing. None: unknown.
        memory_bytes: estimate of what the device holds, weights included, while it scores `preferred_batch` pictures
            of the native size, or of 512 x 512. A scorer's attribute, or a method that takes the number of pictures.
            None: unknown.
        least_side: pixels a side that a picture must have.
        native_side: pixels a side that the scorer looks at; larger pictures are made smaller first. None: any size.
        batch_tolerance: the most that a score changes with the pictures beside it, in units of the score; 0: by no bit.
    """

    preferred_batch: int | None = None
    memory_bytes: int | None = None
    least_side: int = 1
    native_side: int | None = None
    batch_tolerance: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("preferred_batch", 1), ("memory_bytes", 0), ("least_side", 1), ("native_side", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name}={value!r}: a whole number of at least {least}")
        if not 0 <= self.batch_tolerance < float("inf"):
            raise ValueError(f"batch_tolerance={self.batch_tolerance!r}: a finite number of at least 0")


def traits(scorer: Scorer) -> Traits:
    """What the scorer says of itself.

    Raises:
        ValueError: it says something impossible; names the scorer and the attribute.
    """
    names = ("preferred_batch", "memory_bytes", "least_side", "native_side", "batch_tolerance")
    said = {name: getattr(scorer, name) for name in names if hasattr(scorer, name)}
    if callable(memory := said.get("memory_bytes")):
        said["memory_bytes"] = memory(said.get("preferred_batch"))
    try:
        return Traits(**said)
    except (ValueError, TypeError) as error:
        raise ValueError(f"scorer {scorer.name}: {error}; correct the attribute of its class") from error


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
