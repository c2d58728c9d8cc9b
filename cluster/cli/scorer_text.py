"""A scorer as a word of the command line: `NAME` or `NAME,KEY=VALUE,...`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.cli.errors import as_mistake

if TYPE_CHECKING:
    from reward_service.scorers.interface import Scorer


def named_scorer(text: str) -> tuple[str, dict[str, Any], Scorer]:
    """Its name, its parameters and itself. Raises UserMistake."""
    from cluster.config.configure import parse_override, split_at_commas
    from reward_service.scorers import make_scorer

    name, *settings = split_at_commas(text)
    with as_mistake(ValueError):
        params = {".".join(key): value for key, value in map(parse_override, settings)}
        return name, params, make_scorer(name, **params)
