"""The committed scorer on photographs it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import spearmanr

from restoration.degradations import KINDS, seeded_rng
from restoration.pretrain.crops import PhotoCrops
from reward_service.scorers import Scorer, make_scorer
from reward_service.scorers.lite0_levels import CONFIG_FILE, DEFAULT_FOLDER, WEIGHTS_FILE, Lite0Levels
from reward_service.training.distortions import DISTORTIONS, distort
from reward_service.training.labels import LEVELS, soft_labels
from reward_service.training.validation import fit_tasks

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "data/photos/heldout"
SEVERITIES = (0.2, 0.5, 0.9)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.set_num_threads(1)
    return make_scorer("lite0_levels")


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    """uint8 [12, 128, 128, 3]: two crops of each held-out photograph."""
    crops = PhotoCrops(PHOTOS, 128, (0.5, 1.0), seed=3)
    levels, images = crops.levels, []
    for photo in levels:
        crops.levels = [photo]
        images += [crops.one(), crops.one()]
    return np.stack(images)


def damaged(clean: np.ndarray, kind: str, severity: float) -> np.ndarray:
    rng = seeded_rng(kind, round(100 * severity))
    images = [distort(np.asarray(image / np.float32(255), np.float32), kind, severity, rng) for image in clean]
    return (np.stack(images) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def clean_scores(scorer: Scorer, clean: np.ndarray) -> np.ndarray:
    return scorer.score(clean)


@pytest.mark.parametrize("kind", KINDS)
def test_it_ranks_held_out_photographs_above_their_degraded_versions_and_these_by_severity(
    kind: str, scorer: Scorer, clean: np.ndarray, clean_scores: np.ndarray
) -> None:
    scores = np.stack([scorer.score(damaged(clean, kind, severity)) for severity in SEVERITIES])
    assert (clean_scores > scores).mean() >= 0.9
    assert np.mean([spearmanr(SEVERITIES, -column).statistic for column in scores.T]) >= 0.7


@pytest.mark.parametrize("kind", ["sharpen", "saturation", "noise", "latent_noise"])
def test_strong_cheap_tricks_lower_the_score(
    kind: str, scorer: Scorer, clean: np.ndarray, clean_scores: np.ndarray
) -> None:
    tricked = scorer.score(damaged(clean, kind, 1.0))
    assert (clean_scores > tricked).mean() > 0.7
    assert tricked.mean() < clean_scores.mean() - 0.2


def test_scores_are_float32_and_within_its_range(scorer: Scorer, clean: np.ndarray) -> None:
    scores = scorer.score(clean)
    assert scores.dtype == np.float32
    assert scores.min() >= scorer.range[0] and scores.max() <= scorer.range[1]


def test_near_clean_the_score_still_resolves_differences(scorer: Scorer, clean: np.ndarray) -> None:
    clean_scores = scorer.score(clean)
    assert clean_scores.max() < 4.95  # room above: no saturation at the end of the scale
    veiled = scorer.score(damaged(clean, "noise", 0.02))
    assert np.abs(veiled - clean_scores).max() < 1.5  # invisible noise is no catastrophe
    assert (veiled < clean_scores).mean() > 0.7


def test_the_version_names_the_weights_and_equals_the_trained_one(scorer: Scorer) -> None:
    recorded = json.loads((DEFAULT_FOLDER / CONFIG_FILE).read_text())
    assert scorer.version == Lite0Levels().version == recorded["version"]
    assert fit_tasks(recorded["validation"]) == recorded["fit_for_reward"]


def test_the_demo_is_rewarded_only_on_a_task_that_the_scorer_is_fit_for() -> None:
    root = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())["data"]["root"]
    assert Path(root).name in json.loads((DEFAULT_FOLDER / CONFIG_FILE).read_text())["fit_for_reward"]


def test_images_it_cannot_judge_are_refused(scorer: Scorer) -> None:
    with pytest.raises(ValueError, match="too small: sides of 64"):
        scorer.score(np.zeros((1, 32, 128, 3), np.uint8))
    with pytest.raises(ValueError, match="not float32"):
        scorer.score(np.zeros((1, 128, 128, 3), np.float32))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=WEIGHTS_FILE):
        Lite0Levels(weights=tmp_path)


def test_every_distortion_is_a_function_of_its_seed_and_stays_an_image(clean: np.ndarray) -> None:
    for kind in DISTORTIONS:
        a, b = (damaged(clean[:1], kind, 0.6) for _ in range(2))
        assert np.array_equal(a, b)
        assert a.shape == clean[:1].shape and not np.array_equal(a, clean[:1])


def test_soft_labels_have_the_mean_they_are_given() -> None:
    quality = torch.linspace(1, 5, 81)
    p = soft_labels(quality, 0.5)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(81))
    assert ((p @ LEVELS) - quality).abs().max() <= 0.1 + 1e-6
    exact = soft_labels(torch.tensor([2.5]), 0.5)
    torch.testing.assert_close(exact @ LEVELS, torch.tensor([2.5]))
