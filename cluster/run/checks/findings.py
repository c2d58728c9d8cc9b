"""What checks find: a problem stops a run, a sentence warns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.config.tree import Problem

Finding = Problem | str
"""What stops a run, or a warning in a sentence with its way out."""


@dataclass(frozen=True)
class Checked:
    """What was found."""

    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Checked:
        found = list(dict.fromkeys(findings))
        return cls(tuple(f for f in found if isinstance(f, Problem)), tuple(f for f in found if isinstance(f, str)))


def told(key: str, message: str) -> Problem:
    """An error of another room, "what; what to do" or "key=value: what to do", as a problem."""
    what, _, action = message.rpartition("; ") if "; " in message else message.partition(": ")
    named = what.split("=")[0]
    if named.startswith(f"{key}.") and named.replace(".", "").isidentifier():
        key = named
    return Problem(key, what, action)
