"""What a row's run has come to: from its audit, its iterations and when they were done. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FURTHER = 2  # iterations: the second one behind a fault has begun behind it, and needs every part


@dataclass(frozen=True)
class Moment:
    """At this time (monotonic, s) `iteration` had become the last one that is done."""

    at: float
    iteration: int


@dataclass(frozen=True)
class Account:
    """What became of the trajectories.

    Attributes:
        lost: groups that vanished or were damaged, and those that a complete run has not used though it should have.
        used_twice: groups that were settled or published more than once.
        other: what else the audit found, in its words.
    """

    lost: int
    used_twice: int
    other: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.lost or self.used_twice or self.other)

    def __add__(self, more: Account) -> Account:
        return Account(self.lost + more.lost, self.used_twice + more.used_twice, self.other + more.other)


def account(audit: Mapping[str, Any], wanted: int) -> Account:
    """Of `restorl audit --json`.

    Args:
        wanted: groups that the run, complete, has used.
    """
    lost = twice = 0
    other = []
    for problem in audit["problems"]:
        if re.search(r": (settled|published) \d+ times", problem):
            twice += 1
        elif re.search(r": vanished;|is damaged,", problem):
            lost += 1
        else:
            other.append(str(problem))
    if audit["pending"]:
        other.append(f"{audit['pending']} groups are pending though the run is complete")
    used = int(audit["consumed"])
    if used > wanted:
        other.append(f"{used} groups were used, {used - wanted} more than the run has")
    return Account(lost + max(0, wanted - used), twice, tuple(other))


def usual_s(rows: Sequence[Mapping[str, Any]], before: int) -> float:
    """Seconds of an iteration that nothing disturbed: the median of the second to the one before the fault."""
    taken = [float(row["iteration_s"]) for row in rows if 2 <= row["iteration"] <= before and "iteration_s" in row]
    if not taken:
        raise ValueError(f"no iteration between 2 and {before} has its time")
    return statistics.median(taken)


def recovered_s(moments: Sequence[Moment], fault: float, before: int) -> float | None:
    """Seconds from the fault until `FURTHER` more iterations were done; None if they never were."""
    return next((m.at - fault for m in moments if m.at > fault and m.iteration >= before + FURTHER), None)


def gaps(rows: Sequence[Mapping[str, Any]], iterations: int) -> str:
    """What is wrong with the iterations that a run has recorded: each once, in order. Empty if nothing is."""
    found = [int(row["iteration"]) for row in rows]
    return "" if found == list(range(1, iterations + 1)) else f"iterations recorded: {found}"


def happened(statuses: Sequence[int], told: str, notes: Sequence[str], by_hand: str) -> str:
    """In words, from the statuses of the driver's processes.

    Args:
        told: the last line of the process that ended early.
        notes: what it told of failures that it bore.
        by_hand: what was done besides resuming, as people or their supervisor do.
    """
    parts = [by_hand] if by_hand else []
    if len(statuses) == 1:
        parts.append("the run went on" if statuses[0] == 0 else f"the run ended with status {statuses[0]}: {told}")
        if any("starting again from the last checkpoint" in note for note in notes):
            parts.append("the learner started again from the last checkpoint")
    else:
        first = statuses[0]
        how = f"by signal {-first}" if first < 0 else f"with status {first}"
        said = f" ({told})" if told and first >= 0 else ""
        end = "completed" if statuses[-1] == 0 else f"ended with status {statuses[-1]}"
        parts.append(f"the run ended {how}{said}; resumed, it {end}")
    return "; ".join(parts)
