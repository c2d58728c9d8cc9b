"""PSNR and SSIM equal independent implementations under each protocol."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import color
from skimage.data import coffee
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from restoration.images import to_float
from restoration.metrics import PROTOCOLS, measure, protocol


def noisy(clean, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, clean.shape)
    return np.clip(np.round(clean + noise), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photo():
    return coffee()


def wang_ssim(a, b, **options):
    """scikit-image with the window of Wang et al., cut to the windows inside the image."""
    _, full = structural_similarity(
        a, b, gaussian_weights=True, use_sample_covariance=False, data_range=255, full=True, **options
    )
    return full[5:-5, 5:-5].mean()


def test_rgb_equals_scikit_image(photo):
    worse = noisy(photo, 15)
    values = measure("lowlight_rgb", worse, photo)
    assert values["psnr"] == pytest.approx(peak_signal_noise_ratio(photo, worse), abs=1e-9)
    assert values["ssim"] == pytest.approx(wang_ssim(photo, worse, channel_axis=2), abs=1e-9)


def test_luma_equals_scikit_image_on_rounded_y(photo):
    worse = noisy(photo, 15)
    a, b = (np.floor(color.rgb2ycbcr(v)[..., 0] + 0.5 + 1e-9) for v in (photo, worse))
    values = measure("derain_y", worse, photo)
    assert values["psnr"] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)
    assert values["ssim"] == pytest.approx(wang_ssim(a, b), abs=1e-9)


def test_published_figures_of_coffee_with_noise_are_met(photo):
    """Measured once with pyiqa and MATLAB-equal code; another draw of the noise moves them slightly."""
    photo = photo[:384, :512]
    worse = noisy(photo, 15)
    rgb, luma = measure("lowlight_rgb", worse, photo), measure("derain_y", worse, photo)
    assert rgb["psnr"] == pytest.approx(25.05, abs=0.02) and rgb["ssim"] == pytest.approx(0.4888, abs=0.001)
    assert luma["psnr"] == pytest.approx(29.76, abs=0.04) and luma["ssim"] == pytest.approx(0.6848, abs=0.002)


ROUNDED = [name for name, p in PROTOCOLS.items() if not p.takes_floats]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_batch_gives_each_image_its_own_value(name, photo):
    clean = np.stack([photo[:64, :80], photo[100:164, 100:180]])
    worse = np.stack([noisy(clean[0], 5), noisy(clean[1], 40)])
    chosen = protocol(name)
    singles = [measure(name, w, c) for w, c in zip(worse, clean, strict=True)]
    assert chosen.psnr(worse, clean) == pytest.approx([s["psnr"] for s in singles], abs=1e-9)
    assert chosen.ssim(worse, clean) == pytest.approx([s["ssim"] for s in singles], abs=1e-9)


@pytest.mark.parametrize("name", ROUNDED)
def test_float_images_are_rounded_to_levels_first(name, photo):
    clean = photo[:40, :40]
    worse = noisy(clean, 10)
    shifted = to_float(worse) + 0.4 / 255
    assert measure(name, shifted, to_float(clean)) == measure(name, worse, clean)
    assert measure(name, to_float(worse)[None], to_float(clean)[None]) == measure(name, worse, clean)


@pytest.mark.parametrize("name", [name for name, p in PROTOCOLS.items() if not p.aligned])
def test_identical_images_have_a_finite_psnr_and_ssim_one(name, photo):
    assert measure(name, photo[:20, :20], photo[:20, :20]) == {"psnr": 100.0, "ssim": pytest.approx(1.0, abs=1e-12)}


def test_images_smaller_than_the_window_are_refused_with_their_size():
    small = np.zeros((10, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="at least 11 px.*40x10"):
        measure("lowlight_rgb", small, small)
    assert protocol().psnr(small, small) == pytest.approx([100.0])


def test_what_is_no_pair_of_images_is_refused():
    images = np.zeros((12, 12, 3), np.uint8)
    with pytest.raises(ValueError, match="differ in shape"):
        measure("lowlight_rgb", images, np.zeros((12, 13, 3), np.uint8))
    with pytest.raises(ValueError, match="takes one image, got 2"):
        measure("lowlight_rgb", np.stack([images] * 2), np.stack([images] * 2))
    with pytest.raises(ValueError, match="float64"):
        measure("lowlight_rgb", images.astype(float), images)
    with pytest.raises(ValueError, match="shape"):
        measure("lowlight_rgb", torch.zeros(1, 12, 12), torch.zeros(1, 12, 12))
    with pytest.raises(ValueError, match="'psnr-y' is unknown; choose one of lowlight_rgb, derain_y"):
        protocol("psnr-y")
