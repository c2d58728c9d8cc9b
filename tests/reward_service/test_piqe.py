from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from restoration.images import read_pixels
from reward_service.scorers import make_scorer
from reward_service.scorers.piqe import piqe
from tests.reward_service.company import scores_in_any_company

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
# The same of the photographs in colour; it takes OpenCV's weights of the colours, not MATLAB's.
IN_COLOUR = {
    "chelsea": 28.902623,
    "china": 50.586064,
    "coffee": 29.440534,
    "friends": 52.162066,
    "picosdeeuropa": 21.299067,
    "seeding": 21.156331,
}


def pixels(name: str) -> np.ndarray:
    return np.asarray(read_pixels(PHOTOS / f"{name}.jpg"))


@pytest.mark.parametrize("name", PYPIQE)
def test_it_equals_another_implementation(name: str) -> None:
    grey = pixels(name)[:250, :330, 1].copy()
    grey[0, 0] = 255  # pypiqe stretches the brightest pixel to 255, PIQE doesn't
    assert float(piqe(torch.from_numpy(np.repeat(grey[None, ..., None], 3, 3)))) == pytest.approx(
        PYPIQE[name], abs=1e-9
    )


@pytest.mark.parametrize("name", IN_COLOUR)
def test_it_equals_another_implementation_in_colour(name: str) -> None:
    image = pixels(name)[:250, :330].copy()
    image[0, 0] = 255
    assert make_scorer("piqe").score(image[None]) == pytest.approx(100 - IN_COLOUR[name], abs=0.01)


@pytest.mark.parametrize("name", PYPIQE)
def test_clean_photographs_score_above_noisy_and_blurred_ones(name: str) -> None:
    clean = pixels(name)[:256, :256]
    noisy = (clean + np.random.default_rng(0).normal(0, 25, clean.shape)).clip(0, 255).astype(np.uint8)
    blurred = gaussian_filter(clean, (2, 2, 0))
    scores = make_scorer("piqe").score(np.stack([clean, noisy, blurred]))
    assert scores.dtype == np.float32 and scores[0] > scores[1:].max() + 5


def test_an_even_image_has_no_active_block_and_the_worst_score() -> None:
    assert make_scorer("piqe").score(np.full((1, 32, 32, 3), 128, np.uint8)) == pytest.approx(0)


@pytest.mark.parametrize("size", [(16, 16), (128, 128), (131, 150)])
def test_an_image_scores_the_same_in_any_company_and_order(size: tuple[int, int]) -> None:
    block = np.stack([pixels(name)[: size[0], : size[1]] for name in PYPIQE] * 2)
    block[0] = 128
    assert len(set(scores_in_any_company(make_scorer("piqe"), block).tolist())) > 3
