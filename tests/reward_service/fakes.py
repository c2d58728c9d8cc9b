"""A scorer that does what the first pixel of an image orders."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

NAN, RAISE, SLOW, BATCH_SIZE = 255, 254, 253, 252


class Ordered:
    """Scores the mean of the second channel; an order in pixel [0, 0, 0] makes it misbehave."""

    name = "ordered"
    range = (0.0, 255.0)

    def __init__(self, slow_s: float = 3.0, pause_s: float = 0.0, version: str = "ordered-1") -> None:
        self.slow_s, self.pause_s, self.version = slow_s, pause_s, version
        self.batches: list[int] = []

    def score(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        orders = images[:, 0, 0, 0]
        time.sleep(self.pause_s + (self.slow_s if (orders == SLOW).any() else 0))
        if (orders == RAISE).any():
            raise RuntimeError("ordered to raise")
        scores = images[..., 1].mean((1, 2), dtype=np.float64)
        scores[orders == NAN] = np.nan
        scores[orders == BATCH_SIZE] = len(images)
        return scores.astype(np.float32)


class Hundredfold:
    """A scorer of another scale, which is told its device."""

    name = "hundredfold"
    version = "hundredfold-1"
    range = (0.0, 25500.0)

    def __init__(self, device: str = "nowhere", load_s: float = 0.0) -> None:
        time.sleep(load_s)
        self.device = device

    def score(self, images: np.ndarray) -> np.ndarray:
        return (100 * images[..., 1].mean((1, 2), dtype=np.float64)).astype(np.float32)


class Mine:
    """A user's scorer with the four members only: the mean of all channels, or what it is told to give."""

    name, version, range = "mine", "1", (0.0, 255.0)

    def __init__(self, give: str = "mean") -> None:
        self.give = give

    def score(self, images: np.ndarray) -> np.ndarray:
        if self.give == "raise":
            raise RuntimeError("only 224 x 224")
        if self.give == "nan":
            return np.full(len(images), np.nan, np.float32)
        if self.give == "one":
            return np.zeros(1, np.float32)
        return images.mean((1, 2, 3), dtype=np.float64).astype(np.float32)


class Unloadable:
    """Its weights are missing."""

    name, version, range = "unloadable", "1", (0.0, 1.0)

    def __init__(self) -> None:
        raise FileNotFoundError("weights of the scorer are missing")

    def score(self, images: np.ndarray) -> np.ndarray:
        raise AssertionError


def block(values: list[int], order: int = 0, side: int = 8) -> np.ndarray:
    """uint8 [N, side, side, 3] whose scores are `values`; the order goes to the first image."""
    images = np.zeros((len(values), side, side, 3), np.uint8)
    images[..., 1] = np.array(values, np.uint8)[:, None, None]
    images[0, 0, 0, 0] = order
    return images


class Drifting(Ordered):
    """Its answers change when the file `sign` does, as those of a GPU with a fault would; made anew it is right."""

    def __init__(self, sign: str) -> None:
        super().__init__()
        self.sign, self.as_made = Path(sign), Path(sign).read_text()

    def score(self, images: np.ndarray) -> np.ndarray:
        return super().score(images) + 10 * np.float32(self.sign.read_text() != self.as_made)
