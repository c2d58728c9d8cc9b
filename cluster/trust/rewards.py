"""The rewards of a recipe as plain functions of pictures and their ground truths, in this process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.trust.trial import ScoreFunction
from restoration.metrics import protocol
from reward_service.scorers import Scorer, make_scorer
from reward_service.scorers.interface import traits


@dataclass(frozen=True)
class Reward:
    """What is judged.

    Attributes:
        name: as the page shows it.
        batch: pictures of one call at most.
        version: of its scorer; empty where it has none.
        least_side: pixels a side that a picture must have.
        referenced: it sees the ground truth, so that it can't be fooled as to that, and knows PSNR.
    """

    name: str
    score: ScoreFunction
    batch: int = 32
    version: str = ""
    least_side: int = 1
    referenced: bool = False


def rewards_of(config: RunConfig, place: str) -> list[Reward]:
    """The reward that the recipe trains on, first, and then the parts of it that are learnt judges.

    Args:
        place: torch device of scorers.

    Raises:
        ConfigError: a scorer that can't be made.
    """
    if config.rollout.reward == "reconstruction":
        return [Reward("reconstruction", _reconstruction, referenced=True)]
    try:
        scorer = make_scorer(config.reward.scorer, place, **config.reward.params)
        said = traits(scorer)
    except ValueError as error:
        raise ConfigError.of(f"reward.scorer: {error}") from error
    batch = min(said.preferred_batch or config.reward.max_batch, config.reward.max_batch)
    alone = Reward(scorer.name, _without_reference(scorer), batch, scorer.version, said.least_side)
    if not (coefficient := config.rollout.fidelity_coef):
        return [alone]
    psnr = protocol().psnr

    def both(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
        return np.asarray(alone.score(images, gts) + coefficient * psnr(images, gts))

    return [
        Reward(f"{scorer.name} + {coefficient:g} x PSNR", both, batch, scorer.version, said.least_side, True),
        alone,
    ]


def _without_reference(scorer: Scorer) -> ScoreFunction:
    """Its scores, each picture's computed once: several rewards have the same part."""
    known: dict[bytes, float] = {}

    def score(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
        keys = [_digest(image) for image in images]
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            found = np.asarray(scorer.score(np.ascontiguousarray(images[new])))
            if found.shape != (len(new),):
                raise ValueError(
                    f"scorer {scorer.name} gave shape {list(found.shape)} for {len(new)} pictures, not [N]"
                )
            known.update(zip([keys[i] for i in new], found.tolist(), strict=True))
        return np.array([known[key] for key in keys], dtype=np.float32)

    return score


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).tobytes() + str(image.shape).encode(), digest_size=16).digest()


def _reconstruction(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
    away = (images.astype(np.float64) - gts) / 255
    return np.asarray(-np.sqrt(np.square(away).sum((1, 2, 3))))
