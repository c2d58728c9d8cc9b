"""Scorers by name."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from restoration.devices import check_device
from reward_service.scorers.interface import Scorer, check_block

__all__ = ["FAMILIES", "LEAST_SIDE", "SCORERS", "Scorer", "check_block", "make_scorer", "target_of"]

# name -> "module:class"; modules are imported only when asked for, their dependencies may be optional.
SCORERS: dict[str, str] = {
    "brisque": "reward_service.scorers.brisque:Brisque",
    "clip_iqa": "reward_service.scorers.clip_iqa:ClipIqa",
    "deqa": "reward_service.scorers.deqa:Deqa",
    "level_tokens": "reward_service.scorers.level_tokens:LevelTokens",
    "lite0_levels": "reward_service.scorers.lite0_levels:Lite0Levels",
    "niqe": "reward_service.scorers.niqe:Niqe",
    "piqe": "reward_service.scorers.piqe:Piqe",
    "qalign": "reward_service.scorers.qalign:QAlign",
}
# Beginning of a name -> "module:class" of those that are given the whole name.
FAMILIES: dict[str, str] = {
    "http://": "reward_service.scorers.remote:RemoteScorer",
    "https://": "reward_service.scorers.remote:RemoteScorer",
    "pyiqa:": "reward_service.scorers.pyiqa_metrics:PyiqaMetric",
}
# Pixels a side that a picture must have for them, known before any is made.
LEAST_SIDE = {
    "brisque": 32, "clip_iqa": 32, "deqa": 32, "level_tokens": 32, "lite0_levels": 64, "niqe": 96, "piqe": 16,
    "qalign": 32,
}  # fmt: skip


def target_of(name: str) -> str:
    """The "module:class" of a scorer.

    Raises:
        ValueError: no such name.
    """
    target = _family(name) or SCORERS.get(name, name)
    if ":" not in target:
        raise ValueError(f"no scorer named {name!r}; there are {', '.join(sorted(SCORERS))}, or use 'module:class'")
    return target


def _family(name: str) -> str | None:
    return next((target for beginning, target in FAMILIES.items() if name.startswith(beginning)), None)


def make_scorer(name: str, place: str | None = None, /, **params: Any) -> Scorer:
    """Construct a scorer by its registered name, `pyiqa:METRIC`, a server's address, or any class by `"module:class"`.

    Args:
        name: see above.
        place: torch device, given to a scorer that takes `device`, unless `params` says another; None leaves it to
            the scorer.
        params: arguments of the scorer.

    Raises:
        ValueError: unknown name, parameters the scorer does not take, a device that isn't there, or a GPU for a shipped
            scorer that can't use it.
    """
    target, family = target_of(name), _family(name)
    shipped = name in SCORERS or family is not None
    module, _, attribute = target.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"scorer {name!r} cannot be imported: {error}") from error
    if family is not None:
        factory = functools.partial(factory, name)
    if place is not None and "device" not in params:
        if _takes_device(factory):
            params = {"device": place, **params}
        elif place != "cpu" and shipped:
            raise ValueError(f"scorer {name!r} computes on the CPU only: set reward.num_gpus=0")
        elif place != "cpu":
            warnings.warn(f"scorer {name!r} takes no `device`: is it to use the reserved {place}?", stacklevel=2)
    if shipped and "device" in params and _takes_device(factory):
        check_device(params["device"])
    try:
        scorer = factory(**params)
    except TypeError as error:
        raise ValueError(f"scorer {name!r} with parameters {params}: {error}") from error
    if not isinstance(scorer, Scorer):
        raise ValueError(f"{target} is no scorer: it needs name, version, range and score(images)")
    return scorer


def _takes_device(factory: Callable[..., Any]) -> bool:
    try:
        taken = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a class of an extension module may have none
        return False
    return "device" in taken
