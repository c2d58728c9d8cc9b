"""The reward of a run: one scorer, or several terms with weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pydantic

from actors.terms import RewardTerms, Term
from restoration.metrics.appearance import APPEARANCE
from restoration.metrics.full_reference import FULL_REFERENCE
from reward_service.settings import RewardSettings

SERVICE = tuple(f.name for f in dataclasses.fields(RewardSettings))
OF_TERM = ("name", "weight")
RESERVED = {"reward", "psnr", "ssim", "lpips", "fid", "image_id", "missing", "kind", "iteration", "who", *APPEARANCE}
"""Columns and keys of evaluations, among which served terms stand by their names."""
LONGEST_NAME, MOST_TERMS = 32, 8  # they all stand in the version that records carry


@dataclass(frozen=True)
class RunReward(RewardSettings):
    """`scorer` alone is the reward, unless there are `terms`.

    Attributes:
        terms: each with a `scorer` and a `weight` (1 if it has none; 0: only evaluated), perhaps a `name` (else the
            scorer's) and any key of this section for its own service. What a term doesn't say it takes from this
            section, `params` and `app` only with the scorer. `psnr`, `ssim`, `lpips` and `reconstruction` compare with
            the ground truth in the actors and need no service; their `params` are `protocol` (psnr, ssim) and `weights`
            (lpips).
        combine: `sum` of weight x score, or `gdpo`: each term normalised over the rollouts of its image first.
    """

    terms: tuple[dict[str, Any], ...] = ()
    combine: str = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        # Told at once, and by name, what is wrong with a term.
        self.resolved  # noqa: B018
        self.services  # noqa: B018

    @cached_property
    def resolved(self) -> RewardTerms:
        """The terms, without how they are served."""
        found = [self._term(i, given) for i, given in enumerate(self._given)]
        names = [term.name for term in found]
        if len(found) > MOST_TERMS:
            raise ValueError(f"terms: {len(found)} of them; at most {MOST_TERMS}")
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"terms: two are called {twice!r}; give one a `name` of its own")
        return RewardTerms(tuple(found), self.combine)

    @cached_property
    def services(self) -> dict[str, RewardSettings]:
        """Of each term that a service scores, by name."""
        pairs = zip(self.resolved.terms, enumerate(self._given), strict=True)
        return {term.name: self._service(i, given) for term, (i, given) in pairs if term.served}

    def key(self, term: str) -> str:
        """Where a term stands, for messages: `reward`, or `reward.terms[1]`."""
        return f"reward.terms[{[t.name for t in self.resolved.terms].index(term)}]" if self.terms else "reward"

    @property
    def _given(self) -> Sequence[Mapping[str, Any]]:
        return self.terms or ({},)

    def _term(self, index: int, given: Mapping[str, Any]) -> Term:
        where = f"terms[{index}]"
        unknown = sorted(set(map(str, given)) - {*SERVICE, *OF_TERM})
        if unknown:
            known = ", ".join((*OF_TERM, *SERVICE))
            raise ValueError(f"{where}: unknown key {unknown[0]!r}; there are {known}")
        scorer = given.get("scorer", self.scorer)
        served = scorer not in FULL_REFERENCE
        name, weight = given.get("name", scorer), given.get("weight", 1.0)
        if not isinstance(scorer, str) or not scorer:
            raise ValueError(f"{where}.scorer={scorer!r}: name a scorer")
        if not isinstance(name, str) or not name or not name.isprintable() or (self.terms and len(name) > LONGEST_NAME):
            raise ValueError(f"{where}: give it a `name` of at most {LONGEST_NAME} characters, not {name!r}")
        if self.terms and served and (name in RESERVED or name.startswith(("input_", "gt_")) or "#" in name):
            raise ValueError(f"{where}: {name!r} is the name of another figure; give it a `name` of its own")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise ValueError(f"{where}.weight={weight!r}: a finite number, 0 or above (scores are better when higher)")
        if not served and not weight:
            raise ValueError(f"{where}.weight=0: evaluations have {scorer} or not whether it is a term; leave it out")
        params = given.get("params", {} if "scorer" in given else self.params)
        if not isinstance(params, Mapping):
            raise ValueError(f"{where}.params={params!r}: a mapping of the scorer's arguments")
        idle = sorted(set(given) - {"scorer", "params", *OF_TERM}) if not served else []
        if idle:
            raise ValueError(f"{where}.{idle[0]}: {scorer} is computed by the actors, without a service; leave it out")
        return Term(name, float(weight), scorer, served, {} if served else dict(params))

    def _service(self, index: int, given: Mapping[str, Any]) -> RewardSettings:
        values = {name: getattr(self, name) for name in SERVICE}
        if "scorer" in given:
            values |= {"params": {}, "app": None}
        values |= {name: value for name, value in given.items() if name in SERVICE}
        try:
            return pydantic.TypeAdapter(RewardSettings).validate_python(values)
        except pydantic.ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join((f"terms[{index}]", *map(str, first["loc"])))
            raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None
