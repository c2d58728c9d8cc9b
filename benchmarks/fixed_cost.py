"""A scorer of known cost, for benchmarks."""

from __future__ import annotations

import time

import numpy as np


class FixedCost:
    """Takes `ms` an image: asleep (as while a GPU works), or awake, multiplying matrices.

    Args:
        ms: cost of an image in milliseconds.
        turns: matrix products an image instead of sleep; see `turns_for`.
    """

    name = "fixed_cost"
    version = "fixed_cost-1"
    range = (0.0, 255.0)

    def __init__(self, ms: float = 5.0, turns: int = 0) -> None:
        self.ms, self.turns = ms, turns
        self.matrix = np.eye(96, dtype=np.float32)

    def score(self, images: np.ndarray) -> np.ndarray:
        if self.turns:
            for _ in range(self.turns * len(images)):
                self.matrix = self.matrix @ self.matrix
        else:
            time.sleep(self.ms * len(images) / 1e3)
        return images[:, 0, 0, 1].astype(np.float32)


def turns_for(ms: float) -> int:
    """Matrix products that take about `ms` on this machine now."""
    scorer, image = FixedCost(turns=200), np.zeros((1, 1, 1, 3), np.uint8)
    scorer.score(image)
    times = []
    for _ in range(9):
        started = time.perf_counter()
        scorer.score(image)
        times.append(time.perf_counter() - started)
    return max(1, round(200 * ms / 1e3 / sorted(times)[4]))
