"""The scorers of held-out evaluations, which are never optimised."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.config.configure import ConfigError
from restoration.evaluate import ScoreFunction
from reward_service.scorers import make_scorer


def judges(names: Sequence[str]) -> dict[str, ScoreFunction]:
    """Name -> score function, the columns of an evaluation.

    Raises:
        ConfigError: no such scorer.
    """
    try:
        return {name: make_scorer(name).score for name in names}
    except ValueError as error:
        raise ConfigError.of(f"evaluation.scorers: {error}") from error
