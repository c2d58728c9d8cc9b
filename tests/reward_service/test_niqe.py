from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter

from restoration.images import read_pixels
from reward_service.scorers import make_scorer
from reward_service.scorers.niqe import MODEL, Niqe
from tests.reward_service.company import scores_in_any_company

PHOTOS = Path(__file__).parents[2] / "data" / "photos" / "heldout"
# `niqe_core` of the package mmagic 1.2.0 on MATLAB's grey of these photographs cut to 250 x 330: clean, and blurred
# with a deviation of 2 pixels.
MMAGIC = {
    "chelsea": (2.3179, 8.7586),
    "china": (6.2313, 9.1938),
    "coffee": (7.1090, 8.3979),
    "friends": (4.4053, 11.0217),
    "picosdeeuropa": (4.6319, 11.0111),
    "seeding": (6.5591, 9.3061),
}


def pixels(name: str) -> np.ndarray:
    return np.asarray(read_pixels(PHOTOS / f"{name}.jpg"))[:250, :330]


def blurred(image: np.ndarray) -> np.ndarray:
    return gaussian_filter(image, (2, 2, 0))


@pytest.mark.parametrize("name", MMAGIC)
def test_it_equals_another_implementation(name: str) -> None:
    clean = pixels(name)
    found = make_scorer("niqe").score(np.stack([clean, blurred(clean)]))
    assert 100 - found == pytest.approx(MMAGIC[name], abs=0.02)


@pytest.mark.parametrize("name", MMAGIC)
def test_clean_photographs_score_above_noisy_and_blurred_ones(name: str) -> None:
    clean = pixels(name)
    noisy = (clean + np.random.default_rng(0).normal(0, 25, clean.shape)).clip(0, 255).astype(np.uint8)
    scores = make_scorer("niqe").score(np.stack([clean, noisy, blurred(clean)]))
    assert scores.dtype == np.float32 and scores[0] > scores[1:].max() + 1


@pytest.mark.parametrize("size", [(96, 96), (200, 300)])
def test_an_image_scores_the_same_in_any_company_and_order(size: tuple[int, int]) -> None:
    block = np.stack([pixels(name)[: size[0], : size[1]] for name in list(MMAGIC)[:4]])
    block = np.concatenate([block, np.full_like(block[:1], 200)])
    scores_in_any_company(make_scorer("niqe"), block)


def test_a_picture_without_texture_has_no_score_and_the_others_keep_theirs() -> None:
    clean = pixels("coffee")[:192, :192]
    scores = make_scorer("niqe").score(np.stack([np.zeros_like(clean), clean, np.full_like(clean, 77)]))
    assert np.isnan(scores[[0, 2]]).all()
    assert scores[1] == make_scorer("niqe").score(clean[None])[0] > 80


def test_blocks_without_texture_are_left_out() -> None:
    flat = pixels("coffee")[:192, :192].copy()
    flat[:96, :96] = 255
    assert 80 < make_scorer("niqe").score(flat[None])[0] < 100


def test_pixels_beyond_the_last_whole_block_count_for_nothing() -> None:
    image = pixels("friends")[:200, :210].copy()
    cut = Niqe().score(image[None, :192, :192])
    image[192:], image[:, 192:] = 0, 255
    assert np.array_equal(Niqe().score(image[None]), cut)


def test_its_version_changes_with_the_pristine_statistics(tmp_path: Path) -> None:
    state = load_file(MODEL)
    save_file({**state, "mean": state["mean"] + 1e-9}, tmp_path / "other.safetensors")
    ours, other = make_scorer("niqe"), make_scorer("niqe", model=str(tmp_path / "other.safetensors"))
    assert ours.version.startswith("niqe-1-") and other.version != ours.version


def test_a_missing_or_other_model_and_a_small_picture_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        make_scorer("niqe", model=str(tmp_path / "nowhere"))
    save_file({"mean": torch.zeros(36)}, tmp_path / "unlike.safetensors")
    with pytest.raises(ValueError, match="unlike.safetensors.*missing: covariance"):
        make_scorer("niqe", model=str(tmp_path / "unlike.safetensors"))
    with pytest.raises(ValueError, match="95x200 are too small: sides of 96"):
        make_scorer("niqe").score(np.zeros((1, 95, 200, 3), np.uint8))
