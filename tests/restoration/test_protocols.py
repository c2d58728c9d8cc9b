"""Protocols of the fields against scikit-image, SciPy and OpenCV, and against figures that were measured once."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.data import coffee
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from restoration.images import to_float
from restoration.metrics import PROTOCOLS, measure, protocol
from tests.restoration.test_metrics import noisy, wang_ssim


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return coffee()[:384, :512]


@pytest.fixture(scope="module")
def part(photo: np.ndarray) -> np.ndarray:
    return photo[100:228, 100:260]


def matlab_volume_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """MATLAB's ssim of two arrays [H, W, 3]: SciPy's Gaussian in three dimensions, the edges repeated."""

    def smooth(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5, mode="nearest")

    a, b = a.astype(np.float64), b.astype(np.float64)
    means = smooth(a), smooth(b)
    spread = smooth(a * a) - means[0] ** 2 + smooth(b * b) - means[1] ** 2
    shared = smooth(a * b) - means[0] * means[1]
    c = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * means[0] * means[1] + c[0]) / (means[0] ** 2 + means[1] ** 2 + c[0])
    return float((found * (2 * shared + c[1]) / (spread + c[1])).mean())


def test_gopro_is_the_volume_ssim_of_matlab_and_psnr_on_rgb(part: np.ndarray) -> None:
    worse = noisy(part, 15)
    values = measure("gopro_matlab", worse, part)
    assert values["psnr"] == pytest.approx(peak_signal_noise_ratio(part, worse), abs=1e-9)
    assert values["ssim"] == pytest.approx(matlab_volume_ssim(worse, part), abs=1e-12)


@pytest.mark.parametrize("name", ["dpdd_float_8", "dpdd_float_16"])
def test_dpdd_is_the_default_of_scikit_image_on_floats_that_are_not_rounded(part: np.ndarray, name: str) -> None:
    gt = part.astype(np.float64) / 255
    worse = np.clip(gt + np.random.default_rng(0).normal(0, 0.03, gt.shape), 0, 1)
    a, b = (torch.from_numpy(np.moveaxis(x, -1, 0).copy()) for x in (worse, gt))
    values = measure(name, a, b)
    assert values["psnr"] == pytest.approx(peak_signal_noise_ratio(gt, worse, data_range=1), abs=1e-9)
    assert values["ssim"] == pytest.approx(structural_similarity(gt, worse, channel_axis=2, data_range=1), abs=1e-9)
    rounded = measure(name, (a * 255).round() / 255, b)
    assert rounded != values


def test_originals_of_16_bits_are_read_as_8_by_one_protocol_and_whole_by_the_other(part: np.ndarray) -> None:
    deep = part.astype(np.uint16) * 257 + np.random.default_rng(0).integers(0, 128, part.shape, dtype=np.uint16)
    deep = np.minimum(deep, 65535).astype(np.uint16)
    done, file = cv2.imencode(".png", deep[..., ::-1])
    assert done
    shallow = cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1]  # as cv2.imread gives it
    worse = noisy(part, 10)
    eight = measure("dpdd_float_8", worse, shallow)
    assert measure("dpdd_float_8", to_float(worse), to_float(deep)) == pytest.approx(eight, abs=1e-6)
    whole = measure("dpdd_float_16", to_float(worse), to_float(deep))
    expected = peak_signal_noise_ratio(deep / 65535, worse / 255, data_range=1)
    assert whole["psnr"] == pytest.approx(expected, abs=1e-5) and abs(whole["psnr"] - eight["psnr"]) > 1e-4


def by_hand(result: np.ndarray, gt: np.ndarray) -> tuple[float, float]:
    """What RealBlur's evaluation measures, in OpenCV and scikit-image; uint8 [H, W, 3] each."""
    x, z = (p.astype(np.float32) / 255 for p in (gt, result))
    z = (np.sum(x * z) / np.sum(z * z)) * z
    ends = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 0)
    grey = [cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in (x, z)]
    _, warp = cv2.findTransformECC(*grey, np.eye(3, dtype=np.float32), cv2.MOTION_HOMOGRAPHY, ends, None, 5)
    size, inverse = (x.shape[1], x.shape[0]), cv2.WARP_INVERSE_MAP
    moved = cv2.warpPerspective(z, warp, size, flags=cv2.INTER_CUBIC + inverse, borderMode=cv2.BORDER_REFLECT)
    mask = cv2.warpPerspective(np.ones_like(z), warp, size, flags=cv2.INTER_NEAREST + inverse)
    moved, x = moved * mask, x * mask
    psnr = 10 * np.log10(1 / (np.sum((x - moved) ** 2, dtype=np.float64) / mask.sum()))
    _, full = structural_similarity(
        x, moved, channel_axis=2, gaussian_weights=True, use_sample_covariance=False, data_range=1, full=True
    )
    inner = mask[5:-5, 5:-5]
    return float(psnr), float(((full * mask)[5:-5, 5:-5].sum((0, 1)) / inner.sum((0, 1))).mean())


def test_realblur_is_aligned_by_ecc_and_measured_where_the_result_lies(part: np.ndarray) -> None:
    turned = cv2.warpAffine(part, cv2.getRotationMatrix2D((80, 64), 1.0, 1.0) + [[0, 0, 1.7], [0, 0, -1.2]], (160, 128))
    worse = noisy((turned * 0.8).astype(np.uint8), 3)
    values = measure("realblur_ecc", worse, part)
    psnr, ssim = by_hand(worse, part)
    assert values["psnr"] == pytest.approx(psnr, abs=1e-3) and values["ssim"] == pytest.approx(ssim, abs=1e-5)
    assert values["aligned"] == 1 and values["psnr"] > measure("lowlight_rgb", worse, part)["psnr"] + 8


def test_a_result_that_can_not_be_aligned_is_measured_as_it_is_and_counted(part: np.ndarray) -> None:
    black = np.zeros_like(part)
    noise = np.random.default_rng(0).integers(0, 256, part.shape, dtype=np.uint8)
    chosen = protocol("realblur_ecc")
    results, originals = np.stack([part, black, noise]), np.stack([part] * 3)
    assert chosen.alignment(results, originals)[:2].tolist() == [1, 0]
    assert chosen.psnr(black, part) == pytest.approx(protocol().psnr(black, part), abs=1e-4)
    assert chosen.ssim(black, part) == pytest.approx(protocol().ssim(black, part), abs=1e-6)
    flat = np.full_like(part, 120)
    assert chosen.alignment(flat, part).tolist() == [0]
    assert set(chosen.figures) == {"psnr", "ssim", "aligned"} and set(protocol().figures) == {"psnr", "ssim"}


# What the protocols give for one picture: lowlight_rgb, derain_y, gopro_matlab, dpdd_float_8.
FACTS = {"noise": (0.4888, 0.6848, 0.9045, 0.5073), "blur": (0.748, 0.773, 0.957, 0.754)}


@pytest.mark.parametrize("kind", FACTS)
def test_the_ssim_of_one_picture_differs_by_protocol_as_measured(photo: np.ndarray, kind: str) -> None:
    if kind == "noise":
        worse = noisy(photo, 15)
    else:
        planes = [gaussian_filter(photo[..., c].astype(np.float64), 2.0) for c in range(3)]
        worse = np.stack(planes, -1).round().astype(np.uint8)
    names = ("lowlight_rgb", "derain_y", "gopro_matlab", "dpdd_float_8")
    found = tuple(measure(name, worse, photo)["ssim"] for name in names)
    assert found == pytest.approx(FACTS[kind], abs=0.002 if kind == "noise" else 0.0006)


def test_gt_mean_is_off_and_lifts_a_dark_picture_when_it_is_on(photo: np.ndarray) -> None:
    photo = photo[:192, :256]
    dark = (photo * 0.8).round().astype(np.uint8)
    plain, lifted = (measure(name, dark, photo) for name in ("lowlight_rgb", "lowlight_rgb+gt_mean"))
    assert 18 < plain["psnr"] < 22 and lifted["psnr"] > 50
    assert "GT-mean off" in protocol("lowlight_rgb").told and "GT-mean on" in protocol("lowlight_rgb+gt_mean").told
    black = np.zeros_like(photo)
    assert measure("lowlight_rgb+gt_mean", black, photo) == measure("lowlight_rgb", black, photo)


def test_flags_cut_resize_and_change_the_colour(part: np.ndarray) -> None:
    worse = noisy(part, 15)
    cut = measure("lowlight_rgb+border=6", worse, part)
    assert cut == measure("lowlight_rgb", worse[6:-6, 6:-6], part[6:-6, 6:-6])
    small = [cv2.resize(p, (96, 64)) for p in (worse, part)]
    assert measure("lowlight_rgb+resize=96x64", worse, part) == measure("lowlight_rgb", *small)
    assert measure("lowlight_rgb+y", worse, part) == measure("derain_y", worse, part)
    assert measure("derain_y+rgb+border=6", worse, part) == cut
    chosen = protocol("derain_y+border=4+resize=96x64")
    assert chosen.name == "derain_y+border=4+resize=96x64" and "border 4" in chosen.told and "96x64" in chosen.told
    for wrong in (
        "lowlight_rgb+GT",
        "lowlight_rgb+border=0",
        "lowlight_rgb+border=x",
        "lowlight_rgb+resize=96",
        "derain_y+",
    ):
        with pytest.raises(ValueError, match="flag .* is unknown; there are gt_mean, y, rgb, border"):
            protocol(wrong)
    with pytest.raises(ValueError, match="nothing is left of the images within a border of 64"):
        measure("lowlight_rgb+border=64", worse, part)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_float64_says_what_it_is_and_refuses_what_is_not_finite(part: np.ndarray, name: str) -> None:
    chosen, worse = protocol(name), noisy(part, 15)
    for figure in chosen.figures.values():
        assert figure(worse, part).dtype == np.float64
    assert chosen.similarity.told in chosen.told and chosen.name == name
    broken = to_float(worse)
    broken[0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        measure(name, broken, to_float(part))


def test_a_window_that_does_not_fit_is_told_with_its_size() -> None:
    for name, least in (("lowlight_rgb", 11), ("dpdd_float_8", 7)):
        small = np.zeros((least - 1, 40, 3), np.uint8)
        with pytest.raises(ValueError, match=f"at least {least} px.*40x{least - 1}"):
            protocol(name).ssim(small, small)
    tiny = np.full((3, 2, 3), 9, np.uint8)
    assert protocol("gopro_matlab").ssim(tiny, tiny) == pytest.approx([1.0])


def test_wang_is_what_luma_and_rgb_share(part: np.ndarray) -> None:
    worse = noisy(part, 15)
    assert measure("lowlight_rgb", worse, part)["ssim"] == pytest.approx(
        wang_ssim(part, worse, channel_axis=2), abs=1e-9
    )
