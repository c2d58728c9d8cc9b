"""Degradations are seeded, graded by severity and plainly visible."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from restoration.degradations import KINDS, degrade, seeded_rng


@pytest.fixture(scope="module")
def tiles(photo_folder):
    """Clean crops of 128 px from photographs, float32 in [0, 1]."""
    cut = []
    for name in ("train/brushes.jpg", "heldout/coffee.jpg", "heldout/picosdeeuropa.jpg", "train/clock.jpg"):
        with Image.open(photo_folder / name) as photo:
            pixels = np.asarray(photo.convert("RGB"), np.float32) / 255
        y, x = (pixels.shape[0] - 128) // 2, (pixels.shape[1] - 128) // 2
        cut.append(pixels[y : y + 128, x : x + 128])
    return cut


def mean_psnr(kind, severity, tiles):
    degraded = [degrade(t, kind, severity, seeded_rng(str(i), 3)) for i, t in enumerate(tiles)]
    return np.mean([-10 * np.log10(np.mean((d - t) ** 2)) for d, t in zip(degraded, tiles, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_images_and_other_seeds_others(kind, tiles):
    first, again = (degrade(tiles[0], kind, 0.6, seeded_rng("a", 1)) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, degrade(tiles[0], kind, 0.6, seeded_rng("a", 2)))
    assert not np.array_equal(first, degrade(tiles[0], kind, 0.6, seeded_rng("b", 1)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_an_8_bit_image_of_the_same_size_and_the_input_is_untouched(kind, tiles):
    clean = tiles[1].copy()
    degraded = degrade(clean, kind, 1.0, seeded_rng("a", 1))
    assert degraded.dtype == np.float32 and degraded.shape == clean.shape
    assert degraded.min() >= 0 and degraded.max() <= 1
    assert np.abs(degraded * 255 - np.round(degraded * 255)).max() < 1e-4
    assert np.array_equal(clean, tiles[1])


@pytest.mark.parametrize("kind", KINDS)
def test_more_severity_means_less_psnr(kind, tiles):
    values = [mean_psnr(kind, severity, tiles) for severity in (0.1, 0.4, 1.0)]
    assert values[0] > values[1] + 0.5 > values[2] + 1.0


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("rain", 13, 22), ("motion_blur", 17, 25), ("defocus", 18, 26), ("low_light", 6, 15)]
)
def test_middle_severity_is_clearly_visible_but_not_destroyed(kind, low, high, tiles):
    assert low < mean_psnr(kind, 0.6, tiles) < high


def test_blur_keeps_the_mean_light_and_a_flat_picture(tiles):
    flat = np.full((64, 64, 3), 128 / 255, np.float32)
    for kind in ("motion_blur", "defocus"):
        assert np.abs(degrade(flat, kind, 1.0, seeded_rng("a", 1)) - flat).max() < 1.01 / 255
        blurred = degrade(tiles[0], kind, 0.5, seeded_rng("a", 1))
        assert abs((blurred**2.2).mean() / (tiles[0] ** 2.2).mean() - 1) < 0.05


def test_rain_only_brightens(tiles):
    assert (degrade(tiles[0], "rain", 1.0, seeded_rng("a", 1)) >= tiles[0] - 1.01 / 255).all()


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_odd_and_tiny_size_are_degraded_too(kind):
    for size in ((1, 1), (3, 50), (37, 21)):
        assert degrade(np.full((*size, 3), 0.5, np.float32), kind, 1.0, seeded_rng("a", 1)).shape == (*size, 3)


def test_wrong_arguments_are_refused_by_name():
    image = np.zeros((8, 8, 3), np.float32)
    with pytest.raises(ValueError, match="snow.*rain, motion_blur, defocus, low_light"):
        degrade(image, "snow", 0.5, seeded_rng("a", 1))
    for severity in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="severity"):
            degrade(image, "rain", severity, seeded_rng("a", 1))
    with pytest.raises(ValueError, match=r"\[H, W, 3\]"):
        degrade(image[..., 0], "rain", 0.5, seeded_rng("a", 1))
