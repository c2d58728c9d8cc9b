from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from restoration.images import read_pixels
from reward_service.scorers import make_scorer
from reward_service.scorers.piqe import piqe

PHOTOS = Path(__file__).parents[2] / "data" / "photos" / "heldout"
# The package pypiqe 1.2 on the green channel, cut to 250 x 330, of these photographs.
PYPIQE = {
    "chelsea": 28.565481006878525,
    "china": 49.2239550164878,
    "coffee": 29.210518021302008,
    "friends": 53.26751523024228,
    "picosdeeuropa": 18.01058538923282,
    "seeding": 21.72947453508064,
}


def pixels(name: str) -> np.ndarray:
    return np.asarray(read_pixels(PHOTOS / f"{name}.jpg"))


@pytest.mark.parametrize("name", PYPIQE)
def test_it_equals_another_implementation(name: str) -> None:
    grey = pixels(name)[:250, :330, 1].copy()
    grey[0, 0] = 255  # pypiqe stretches the brightest pixel to 255, PIQE doesn't
    assert float(piqe(torch.from_numpy(np.repeat(grey[..., None], 3, 2)))) == pytest.approx(PYPIQE[name], abs=1e-9)


@pytest.mark.parametrize("name", PYPIQE)
def test_clean_photographs_score_above_noisy_and_blurred_ones(name: str) -> None:
    clean = pixels(name)[:256, :256]
    noisy = (clean + np.random.default_rng(0).normal(0, 25, clean.shape)).clip(0, 255).astype(np.uint8)
    blurred = gaussian_filter(clean, (2, 2, 0))
    scores = make_scorer("piqe").score(np.stack([clean, noisy, blurred]))
    assert scores.dtype == np.float32 and scores[0] > scores[1:].max() + 5


def test_an_even_image_has_no_active_block_and_the_worst_score() -> None:
    assert make_scorer("piqe").score(np.full((1, 32, 32, 3), 128, np.uint8)) == pytest.approx(0)


def test_an_image_scores_the_same_in_any_company() -> None:
    block = np.stack([pixels(name)[:128, :128] for name in PYPIQE])
    scorer = make_scorer("piqe")
    assert np.array_equal(scorer.score(block), np.concatenate([scorer.score(image[None]) for image in block]))
