from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from restoration.images import read_pixels
from reward_service.scorers import make_scorer

PHOTOS = Path(__file__).parents[2] / "data" / "photos" / "heldout"
# The features of the package brisque 0.2.0, through the same regression, of these photographs cut to 250 x 330. Its
# solver stops early, which moves a feature by up to 1e-4.
BRISQUE = {
    "chelsea": 7.422781697350018,
    "china": 16.52520972900001,
    "coffee": 10.911950241737458,
    "friends": 26.45654589447426,
    "picosdeeuropa": 1.2905926284578015,
    "seeding": -4.447279831698808,
}


def pixels(name: str) -> np.ndarray:
    return np.asarray(read_pixels(PHOTOS / f"{name}.jpg"))[:250, :330]


@pytest.mark.parametrize("name", BRISQUE)
def test_it_equals_another_implementation(name: str) -> None:
    assert make_scorer("brisque").score(pixels(name)[None]) == pytest.approx(100 - BRISQUE[name], abs=0.03)


@pytest.mark.parametrize("name", BRISQUE)
def test_clean_photographs_score_above_noisy_and_blurred_ones(name: str) -> None:
    clean = pixels(name)
    noisy = (clean + np.random.default_rng(0).normal(0, 25, clean.shape)).clip(0, 255).astype(np.uint8)
    scores = make_scorer("brisque").score(np.stack([clean, noisy, gaussian_filter(clean, (2, 2, 0))]))
    assert scores.dtype == np.float32 and scores[0] > scores[1:].max() + 20


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_even_image_has_a_finite_score(level: int) -> None:
    assert np.isfinite(make_scorer("brisque").score(np.full((1, 64, 64, 3), level, np.uint8))).all()


def test_a_missing_or_other_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        make_scorer("brisque", model=str(tmp_path / "nowhere"))
    (tmp_path / "other").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="other"):
        make_scorer("brisque", model=str(tmp_path / "other"))
