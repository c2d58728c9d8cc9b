"""The rewards of several runs over their iterations, from the records of their folders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.compare.opening import Named
from cluster.report.data import smooth
from cluster.report.records import Record, read_metrics, series


@dataclass(frozen=True)
class Course:
    """How a run's reward went.

    Attributes:
        first, last: means over the first and the last tenth of its iterations.
        scatter: standard deviation of the reward about the smoothed one, which lags behind a steady rise.
        rise: from the first to the last, in units of the scatter; infinite without any.
    """

    name: str
    iterations: int
    first: float
    last: float
    scatter: float

    @property
    def rise(self) -> float:
        change = self.last - self.first
        return change / self.scatter if self.scatter else math.copysign(math.inf, change) if change else 0.0


def read_runs(folders: Sequence[Named]) -> dict[str, list[Record]]:
    """Name of a run -> its records of training.

    Raises:
        FileNotFoundError: no run, or one that has not trained.
        ValueError: a run without a reward in two iterations, or a damaged record.
    """
    found = {}
    for named in folders:
        records = read_metrics(named.folder, "train")
        if len(series(records, "reward_mean")[0]) < 2:
            raise ValueError(f"{named.folder}: no reward_mean of two iterations; give a run that has trained that far")
        found[named.name] = records
    return found


def course(name: str, records: Sequence[Record]) -> Course:
    """Raises ValueError: no record has a reward."""
    iterations, rewards = series(records, "reward_mean")
    if not rewards:
        raise ValueError(f"{name}: no reward_mean in its records")
    smoothed = smooth(rewards)
    scatter = math.sqrt(math.fsum((r - s) ** 2 for r, s in zip(rewards, smoothed, strict=True)) / len(rewards))
    part = max(1, len(rewards) // 10)
    first, last = (math.fsum(values) / part for values in (rewards[:part], rewards[-part:]))
    return Course(name, iterations[-1], first, last, scatter)
