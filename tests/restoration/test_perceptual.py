from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from restoration.images import read_pixels
from restoration.metrics.perceptual import Lite0Metrics, frechet_distance

PHOTO = Path(__file__).parents[2] / "data" / "photos" / "heldout" / "coffee.jpg"


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    return (image + np.random.default_rng(0).normal(0, sigma, image.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.asarray(read_pixels(PHOTO))[:192, :192]


def test_the_distance_of_equal_images_is_0_and_grows_with_noise(image: np.ndarray) -> None:
    metrics = Lite0Metrics()
    distances = [metrics.add(str(sigma), noisy(image, sigma) if sigma else image, image) for sigma in (0, 5, 15, 40)]
    assert distances[0] == 0 and distances == sorted(set(distances))
    assert metrics.distances == dict(zip(("0", "5", "15", "40"), distances, strict=True))


def test_the_frechet_distance_is_small_for_equal_images_and_grows_with_noise(image: np.ndarray) -> None:
    found = []
    for sigma in (0, 10, 30):
        metrics = Lite0Metrics()
        metrics.add("image", noisy(image, sigma) if sigma else image, image)
        found.append(metrics.frechet())
    assert found[0] == pytest.approx(0, abs=1e-3 * found[1]) and found[0] < found[1] < found[2]


def test_the_frechet_distance_is_that_of_the_gaussians() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200_000, 2))
    b = rng.normal(size=(200_000, 2)) * [2.0, 1.0] + [3.0, 0.0]
    assert frechet_distance(a, b) == pytest.approx(9 + (2 - 1) ** 2, rel=0.01)


def test_too_few_features_are_refused(image: np.ndarray) -> None:
    metrics = Lite0Metrics()
    metrics.add("small", image[:64, :64], image[:64, :64])
    with pytest.raises(ValueError, match="more or larger images"):
        metrics.frechet()
