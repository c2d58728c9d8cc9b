"""A scorer for `benchmarks.watching` that has no score for one picture in sixteen, so that failures can be watched."""

from __future__ import annotations

import zlib

import numpy as np

LARGEST = 64  # pixels a side: what a service tries itself by is larger, and always scored
ONE_IN = 16


class MoodyContrast:
    """Deviation of the grey values; NaN where the picture's own bytes say so, in any batch and at any try."""

    name = version = "moody"
    range = (0.0, 10.0)

    def score(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 [N]."""
        scores = (images.astype(np.float64).mean(-1).reshape(len(images), -1).std(1) / 16).astype(np.float32)
        if images.shape[1] <= LARGEST:
            scores[[zlib.crc32(image.tobytes()) % ONE_IN == 0 for image in images]] = np.nan
        return scores
