"""The rewards of a recipe as plain functions of pictures and their ground truths, in this process."""

from __future__ import annotations

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
    """

    name: str
    score: ScoreFunction
    batch: int = 32
    version: str = ""


def rewards_of(config: RunConfig, place: str) -> list[Reward]:
    """The reward that the recipe trains on, first, and then the parts of it that are learnt judges.

    Args:
        place: torch device of scorers.

    Raises:
        ConfigError: a scorer that can't be made.
    """
    if config.rollout.reward == "reconstruction":
        return [Reward("reconstruction", _reconstruction)]
    try:
        scorer = make_scorer(config.reward.scorer, place, **config.reward.params)
        preferred = traits(scorer).preferred_batch or config.reward.max_batch
    except ValueError as error:
        raise ConfigError.of(f"reward.scorer: {error}") from error
    alone = Reward(scorer.name, _without_reference(scorer), min(preferred, config.reward.max_batch), scorer.version)
    if not (coefficient := config.rollout.fidelity_coef):
        return [alone]
    psnr = protocol().psnr

    def both(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
        return np.asarray(alone.score(images, gts) + coefficient * psnr(images, gts))

    return [Reward(f"{scorer.name} + {coefficient:g} x PSNR", both, alone.batch, scorer.version), alone]


def _without_reference(scorer: Scorer) -> ScoreFunction:
    return lambda images, gts: scorer.score(images)


def _reconstruction(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
    away = (images.astype(np.float64) - gts) / 255
    return np.asarray(-np.sqrt(np.square(away).sum((1, 2, 3))))
