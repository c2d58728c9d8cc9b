"""BRISQUE with the model trained on LIVE (Mittal, Moorthy, Bovik, "No-Reference Image Quality Assessment in the
Spatial Domain", 2012): statistics of locally normalised pixels at two scales, into a support vector regression.

Sharpening, darkening or more colour can beat a clean photograph's score, and it prefers noisy low-light crops of 128 px
to clean ones: an ablation and a witness, no reward to rely on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from scipy.optimize import brentq
from scipy.special import gammaln

from restoration.checkpoints import CheckpointError, read_state
from reward_service.scorers.interface import check_block

MODEL = Path(__file__).resolve().parents[2] / "models" / "brisque" / "brisque_live.safetensors"
WINDOW, SIGMA, STABLE = 7, 7 / 6, 1 / 255
GREY = (0.2125, 0.7154, 0.0721)
SHAPES = (0.05, 50.0)  # of a generalised Gaussian; 2 is a Gaussian
Array = NDArray[np.float64]


class Brisque:
    """Scores 100 - BRISQUE, so that higher is better; not bounded.

    Args:
        model: file of the regression; the committed one by default.

    Raises:
        ValueError: the file is missing or is no such model.
    """

    name = "brisque"
    version = "brisque-live-1"
    range = (float("-inf"), float("inf"))

    def __init__(self, model: str | None = None) -> None:
        path = Path(model) if model else MODEL
        try:
            parts = {name: tensor.numpy() for name, tensor in read_state(path).items()}
            self.support, self.coefficients = parts["support"], parts["coefficients"]
            self.least, self.most = parts["least"], parts["most"]
            self.gamma, self.rho = float(parts["gamma"][0]), float(parts["rho"][0])
        except (KeyError, CheckpointError) as error:
            raise ValueError(f"{path}: no BRISQUE model ({error}); it is models/brisque of the repository") from error

    def score(self, images: Any) -> np.ndarray:
        """uint8 [N, H, W, 3] RGB, sides of at least 32 -> float32 [N]."""
        found = [100 - self.brisque(image) for image in check_block(images, 32)]
        return np.array(found, dtype=np.float32)

    def brisque(self, image: np.ndarray) -> float:
        """BRISQUE of a uint8 [H, W, 3] image; lower is better."""
        scaled = 2 * (features(image) - self.least) / (self.most - self.least) - 1
        kernel = np.exp(-self.gamma * np.square(self.support - scaled).sum(1))
        return float(self.coefficients @ kernel - self.rho)


def features(image: np.ndarray) -> Array:
    """18 statistics at full and 18 at half size."""
    grey = image.astype(np.float64) @ np.array(GREY) / 255
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    return np.concatenate([_statistics(grey), _statistics(np.asarray(half))])


def _statistics(grey: Array) -> Array:
    """Shape and variance of the normalised pixels; shape, mean and both variances of four products of neighbours."""
    mean = _smooth(grey)
    deviation = np.sqrt(np.abs(_smooth(np.square(grey)) - np.square(mean)))
    x = (grey - mean) / (deviation + STABLE)
    shape, _, left, right = _fit(x)
    neighbours = (x[:, :-1] * x[:, 1:], x[:-1] * x[1:], x[:-1, :-1] * x[1:, 1:], x[1:, :-1] * x[:-1, 1:])
    return np.array([shape, (left + right) / 2, *(value for product in neighbours for value in _fit(product))])


def _smooth(grey: Array) -> Array:
    at = np.arange(WINDOW) - WINDOW // 2
    bell = np.exp(-np.square(at) / (2 * SIGMA**2))
    bell /= bell.sum()
    for axis in (0, 1):
        grey = correlate1d(grey, bell, axis, mode="constant")
    return grey


def _fit(x: Array) -> tuple[float, float, float, float]:
    """Asymmetric generalised Gaussian by its moments: shape, mean, variance left and right of 0.

    An even image has no spread on one side; it counts as a Gaussian without any.
    """
    below, above = x[x < 0], x[x >= 0]
    left, right = (float(np.square(side).mean()) if side.size else 0.0 for side in (below, above))
    square = float(np.square(x).mean())
    if left == 0 or right == 0:
        return 2.0, 0.0, left, right
    ratio = np.sqrt(left / right)
    wanted = np.abs(x).mean() ** 2 / square * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2

    def excess(shape: float) -> float:
        return float(np.exp(2 * gammaln(2 / shape) - gammaln(1 / shape) - gammaln(3 / shape)) - wanted)

    low, high = SHAPES
    shape = low if excess(low) > 0 else high if excess(high) < 0 else float(brentq(excess, low, high, xtol=1e-10))
    spread = np.exp(gammaln(2 / shape) - (gammaln(1 / shape) + gammaln(3 / shape)) / 2)
    return shape, float((np.sqrt(right) - np.sqrt(left)) * spread), left, right
