"""The rewards of a recipe as plain functions of pictures and their ground truths, in this process."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from actors.terms import Term
from cluster.config.configure import ConfigError
from cluster.config.recipe import RunConfig
from cluster.trust.trial import ScoreFunction
from restoration.metrics.full_reference import full_reference
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
    """The reward that the recipe trains on, first, and then those terms of it that are no comparison with the truth.

    Args:
        place: torch device of scorers.

    Raises:
        ConfigError: a scorer that can't be made.
    """
    terms = config.reward.resolved
    parts = [_part(config, term, place) for term in terms.trained]
    if len(parts) == 1 or terms.combine == "gdpo":  # normalised in its group, a term is judged by itself
        return parts
    weights = [term.weight for term in terms.trained]
    told = (name if weight == 1 else f"{weight:g} x {name}" for weight, name in zip(weights, terms.names, strict=True))

    def whole(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
        scored = (w * part.score(images, gts).astype(np.float64) for w, part in zip(weights, parts, strict=True))
        return np.asarray(sum(scored))

    return [
        Reward(
            " + ".join(told),
            whole,
            min(part.batch for part in parts),
            terms.version(dict(zip(terms.names, (part.version for part in parts), strict=True))),
            max(part.least_side for part in parts),
            any(part.referenced for part in parts),
        ),
        *(part for part in parts if not part.referenced),
    ]


def _part(config: RunConfig, term: Term, place: str) -> Reward:
    key = config.reward.key(term.name)
    try:
        if not term.served:
            found = full_reference(term.scorer, place, **term.params)
            return Reward(term.name, found.score, 32, found.version, found.least_side, referenced=True)
        service = config.reward.services[term.name]
        elsewhere = term.scorer.startswith(("http://", "https://"))
        scorer = make_scorer(term.scorer, None if elsewhere else place, **service.params)
        said = traits(scorer)
    except ValueError as error:
        raise ConfigError.of(f"{key}.scorer: {error}") from error
    batch = min(said.preferred_batch or service.max_batch, service.max_batch)
    return Reward(term.name, _without_reference(scorer), batch, scorer.version, said.least_side)


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
