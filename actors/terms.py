"""A reward of several terms: each is scored by itself, then they become the number that is trained on (method.md 4).

Pure: which terms there are, how they are combined, and under which version the result is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from restoration.metrics.full_reference import version_of

COMBINATIONS = ("sum", "gdpo")
LEAST_DEVIATION = 1e-6  # of a term within a group: below, rounding would be blown up to a preference


@dataclass(frozen=True)
class Term:
    """One of the scores that a reward is made of; higher is better.

    Attributes:
        name: in records, metrics and reports.
        weight: what a unit of its score is worth. 0: held-out evaluations have it, rollouts are not scored by it.
        scorer: name of the scorer.
        served: asked of the reward service; else it is full-reference and computed by the actor, which has the ground
            truth (`restoration.metrics.full_reference`).
        params: of a full-reference scorer.
    """

    name: str
    weight: float = 1.0
    scorer: str = ""
    served: bool = True
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewardTerms:
    """All terms of a run.

    Attributes:
        terms: at least one of them with a weight above 0.
        combine: `sum` of weight x score; `gdpo` normalises each term over the rollouts of its image first, at each
            step, so that a weight says how much a term matters whatever its scale.
    """

    terms: tuple[Term, ...]
    combine: str = "sum"

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine={self.combine!r}: choose {' or '.join(COMBINATIONS)}")
        if not self.trained:
            raise ValueError("terms: none has a weight above 0; give one at least")

    @property
    def trained(self) -> tuple[Term, ...]:
        """Those that rollouts are scored by."""
        return tuple(term for term in self.terms if term.weight)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the trained ones."""
        return tuple(term.name for term in self.trained)

    @property
    def plain(self) -> bool:
        """Whether the reward is one score as it comes."""
        return len(self.trained) == 1 and self.trained[0].weight == 1 and self.combine == "sum"

    @property
    def main(self) -> str | None:
        """The term that evaluations call the reward: the first that needs no ground truth."""
        return next((term.name for term in (*self.trained, *self.terms) if term.served), None)

    def combined(self, scores: Mapping[str, Tensor], group: int) -> Tensor:
        """The rewards.

        Args:
            scores: by name of each trained term, float32 [R, S]; rows of one image stand together, NaN: not
                scored.
            group: K, rows of one image.

        Returns:
            float32 [R, S].

        Raises:
            KeyError: a trained term without scores.
        """
        total: Tensor | float = 0.0
        for term in self.trained:
            values = scores[term.name].double()
            if self.combine == "gdpo":
                of_image = values.unflatten(0, (-1, group))
                deviation = of_image.std(1, correction=0, keepdim=True)
                of_image = (of_image - of_image.mean(1, keepdim=True)) / (deviation + LEAST_DEVIATION)
                values = of_image.flatten(0, 1)
            total = total + term.weight * values
        assert isinstance(total, Tensor)
        return total.to(torch.float32)

    def version(self, versions: Mapping[str, str]) -> str:
        """What rewards are recorded under; `versions` of each trained term, by name.

        It changes with any of the versions, weights, or the combination: rewards under two of them don't compare.
        """
        if self.plain:
            return versions[self.trained[0].name]
        told = [(term.name, term.weight, versions[term.name]) for term in self.trained]
        digest = hashlib.sha256(repr((self.combine, told)).encode()).hexdigest()[:16]
        return f"{self.combine}({', '.join(f'{weight:g} {name}' for name, weight, _ in told)})-{digest}"


def recorded_version(terms: RewardTerms, served: Mapping[str, str]) -> str:
    """`RewardTerms.version` from the versions that the services said, by name.

    Raises:
        ValueError, CheckpointError: a full-reference term that can't be made.
    """
    local = {term.name: version_of(term.scorer, **term.params) for term in terms.trained if not term.served}
    return terms.version({**served, **local})
