"""Cheap scorers for runs in tests, and ones that fail."""

from __future__ import annotations

import time

import numpy as np


class Contrast:
    """Deviation of the grey values, scaled to about 1..5; the same image scores the same in any batch."""

    name = "contrast"
    version = "contrast-1"
    range = (0.0, 10.0)

    def score(self, images: np.ndarray) -> np.ndarray:
        grey = images.astype(np.float64).mean(-1).reshape(len(images), -1)
        return (grey.std(1) / 16).astype(np.float32)


class Percent(Contrast):
    """The same on another scale, 30 to 100."""

    name = "percent"
    version = "percent-1"
    range = (0.0, 100.0)

    def score(self, images: np.ndarray) -> np.ndarray:
        return 30 + 10 * super().score(images)


class Slow(Contrast):
    """Takes its time over every picture, so that a few actors are a load for it."""

    def score(self, images: np.ndarray) -> np.ndarray:
        time.sleep(0.15 * len(images))
        return super().score(images)


class NotANumber(Contrast):
    """Has no score for the small pictures of these runs; the probe's are larger, else no replica would start."""

    name = version = "nan"

    def score(self, images: np.ndarray) -> np.ndarray:
        return super().score(images) if images.shape[1] > 64 else np.full(len(images), np.nan, dtype=np.float32)


class Raises(Contrast):
    name = version = "raises"

    def score(self, images: np.ndarray) -> np.ndarray:
        raise RuntimeError("the scorer is broken on purpose")
