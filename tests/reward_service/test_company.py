"""Batch mates, order, batch size and memory that may not be written are nothing to a score, of every scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reward_service.probe_pictures import probe_pictures
from reward_service.scorers import LEAST_SIDE, SCORERS, make_scorer
from reward_service.scorers.interface import traits
from tests.reward_service.company import reads_only, scores_in_any_company
from tests.reward_service.makers import PARAMS, VARIANTS, made

CASES = [
    pytest.param(name, settings, id=" ".join([name, *(f"{k}={v}" for k, v in settings.items())]))
    for name in sorted(SCORERS)
    for settings in ({}, *VARIANTS.get(name, []))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def test_every_scorer_can_be_made_here() -> None:
    assert PARAMS.keys() == SCORERS.keys(), "tests/reward_service/makers.py: add the new scorer, so that it is tried"


def block(side: int) -> np.ndarray:
    """uint8 [7, side, side + 16, 3]: as photographs, noise, and one even picture."""
    scene = probe_pictures(side + 16)[:, :side]
    noise = np.random.default_rng(5).integers(0, 256, (3, side, side + 16, 3), dtype=np.uint8)
    return np.concatenate([scene, noise, np.full((1, side, side + 16, 3), 99, np.uint8)])


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_score_does_not_depend_on_batch_mates_order_or_batch_size(
    name: str, settings: dict[str, Any], folder: Path
) -> None:
    scorer = made(name, folder, **settings)
    tolerance = traits(scorer).batch_tolerance
    if settings.get("deterministic"):
        assert tolerance == 0, "deterministic scores have equal bits"
    low, high = scorer.range
    assert tolerance <= 0.02 * (high - low if np.isfinite(high - low) else 100)
    pictures = block(max(LEAST_SIDE[name], 48))
    together = scores_in_any_company(scorer, pictures, tolerance, threads=None)
    assert len(set(together.tolist())) > 3
    again = made(name, folder, **settings)  # another replica
    np.testing.assert_array_equal(again.score(pictures), together)


class Shy:
    """Scores a picture by its place."""

    name, version, range = "shy", "1", (0.0, 9.0)

    def score(self, images: np.ndarray) -> np.ndarray:
        return np.arange(len(images), dtype=np.float32)


def test_a_scorer_that_looks_at_the_company_is_found() -> None:
    with pytest.raises(AssertionError):
        scores_in_any_company(Shy(), block(48))


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_pictures_that_may_not_be_written_are_scored_alike_and_without_a_word(name: str, folder: Path) -> None:
    reads_only(made(name, folder), block(max(LEAST_SIDE[name], 48))[:3])


class Greedy(Shy):
    """Writes into the pictures that it is given."""

    def score(self, images: np.ndarray) -> np.ndarray:
        images[:, 0, 0] = 0
        return images.mean((1, 2, 3), dtype=np.float32)


class Loud(Shy):
    """Takes the pictures as they are, of which torch warns."""

    def score(self, images: np.ndarray) -> np.ndarray:
        return torch.from_numpy(images).float().mean((1, 2, 3)).numpy()


@pytest.mark.parametrize("kind", [Greedy, Loud])
def test_a_scorer_that_writes_or_warns_of_writing_is_found(kind: type[Shy]) -> None:
    with pytest.raises((ValueError, UserWarning), match="read-only|not writable"):
        reads_only(kind(), block(48))


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_what_a_scorer_says_of_itself_holds(name: str, folder: Path) -> None:
    scorer = made(name, folder)
    said = traits(scorer)
    side = said.least_side
    assert side == LEAST_SIDE[name]
    assert said.preferred_batch is not None and said.memory_bytes is not None and said.memory_bytes > 0
    pixels = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
    assert np.isfinite(scorer.score(pixels)).all()
    with pytest.raises(ValueError, match="too small"):
        scorer.score(pixels[:, 1:])


def test_a_class_with_the_four_members_only_says_nothing_more_and_works() -> None:
    said = traits(Shy())
    assert (said.preferred_batch, said.memory_bytes, said.least_side, said.native_side) == (None, None, 1, None)
    scorer = make_scorer("tests.reward_service.test_company:Shy")
    assert scorer.score(np.zeros((2, 8, 8, 3), np.uint8)).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("preferred_batch", 0),
        ("preferred_batch", 2.5),
        ("memory_bytes", -1),
        ("least_side", "32"),
        ("native_side", True),
        ("batch_tolerance", float("nan")),
        ("batch_tolerance", "much"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(attribute: str, value: object) -> None:
    scorer = Shy()
    setattr(scorer, attribute, value)
    with pytest.raises(
        ValueError, match=f"scorer shy: .*{attribute if value != 'much' else ''}.*correct the attribute"
    ):
        traits(scorer)


def test_memory_may_be_a_number_or_a_method_of_the_batch() -> None:
    scorer = Shy()
    scorer.memory_bytes = 7  # type: ignore[attr-defined]
    assert traits(scorer).memory_bytes == 7
    scorer.preferred_batch = 4  # type: ignore[attr-defined]
    scorer.memory_bytes = lambda batch: 100 + batch  # type: ignore[attr-defined]
    assert traits(scorer).memory_bytes == 104
