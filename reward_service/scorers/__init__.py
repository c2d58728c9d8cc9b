"""Scorers by name."""

from __future__ import annotations

import importlib
from typing import Any

from reward_service.scorers.interface import Scorer, check_block

__all__ = ["SCORERS", "Scorer", "check_block", "make_scorer"]

# name -> "module:class"; modules are imported only when asked for, their dependencies may be optional.
SCORERS: dict[str, str] = {
    "brisque": "reward_service.scorers.brisque:Brisque",
    "lite0_levels": "reward_service.scorers.lite0_levels:Lite0Levels",
    "piqe": "reward_service.scorers.piqe:Piqe",
}


def make_scorer(name: str, **params: Any) -> Scorer:
    """Construct a scorer by its registered name, or any class by `"module:class"`.

    Raises:
        ValueError: unknown name, or parameters the scorer does not take.
    """
    target = SCORERS.get(name, name)
    module, separator, attribute = target.partition(":")
    if not separator:
        raise ValueError(f"no scorer named {name!r}; there are {', '.join(sorted(SCORERS))}, or use 'module:class'")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"scorer {name!r} cannot be imported: {error}") from error
    try:
        scorer = factory(**params)
    except TypeError as error:
        raise ValueError(f"scorer {name!r} with parameters {params}: {error}") from error
    if not isinstance(scorer, Scorer):
        raise ValueError(f"{target} is no scorer: it needs name, version, range and score(images)")
    return scorer
