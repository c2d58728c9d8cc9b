"""The spans of a run as its folder has them: who was busy with what, and when, by the driver's clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.report.lines import Lines

SPANS_FILE, EARLIER_SPANS_FILE = "spans.jsonl", "spans.1.jsonl"
RUN, ACTOR, LEARNER, RANK = "run", "actor", "learner", "rank"
Interval = tuple[float, float]


@dataclass(frozen=True)
class Busy:
    """
    Attributes:
        role: run, actor, learner (what all ranks do together) or rank.
        who: such as "actor 3".
        start, end: seconds since 1970.
    """

    role: str
    who: str
    name: str
    start: float
    end: float
    host: str = ""
    pid: int = 0
    note: str = ""

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Clock:
    """By how much the driver's clock was ahead of a host's: at least `low` and at most `high` seconds."""

    host: str
    low: float
    high: float

    @property
    def shift(self) -> float:
        """What is added to its times: nothing where they may be right as they are."""
        return 0.0 if self.low <= 0 <= self.high else (self.low + self.high) / 2

    def __str__(self) -> str:
        if self.shift:
            word = "behind" if self.shift > 0 else "ahead of"
            amount = f"{abs(self.shift):.3f} s (+-{(self.high - self.low) / 2:.3f} s)"
            return f"the clock of {self.host} is {amount} {word} the driver's: corrected"
        return f"the clock of {self.host} differs from the driver's by {max(-self.low, self.high):.3f} s at most"


@dataclass(frozen=True)
class Iteration:
    """One iteration of the driver: from the record of the one before to its own."""

    number: int
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """All spans of a run that are kept, in order of their start; times are corrected by `clocks`."""

    spans: tuple[Busy, ...] = ()
    iterations: tuple[Iteration, ...] = ()
    clocks: tuple[Clock, ...] = ()
    damage: tuple[str, ...] = ()

    def within(self, start: float, end: float) -> list[Busy]:
        """The spans that reach into this time."""
        return [span for span in self.spans if span.end > start and span.start < end]


@dataclass(frozen=True)
class Overlap:
    """Seconds in which the learner, actors, and both at once were busy within some time.

    Attributes:
        learner_s: a step, the publication of its weights, or a snapshot.
        actors_s: at least one rollout or its scoring.
    """

    seconds: float
    learner_s: float
    actors_s: float
    both_s: float

    @property
    def share(self) -> float | None:
        """Of the learner's busy time, that in which actors worked, too; None where it had none."""
        return self.both_s / self.learner_s if self.learner_s > 0 else None


@dataclass
class _Gathered:
    spans: list[dict[str, Any]] = field(default_factory=list)
    clocks: dict[str, Clock] = field(default_factory=dict)

    def take(self, row: dict[str, Any]) -> None:
        if "clock" in row:
            host = str(row["clock"])
            self.clocks[host] = Clock(host, float(row["low"]), float(row["high"]))
            return
        known = {name: str(row[name]) for name in ("role", "who", "name")}
        start, end = float(row["start"]), float(row["end"])
        if not start <= end:
            raise ValueError("it ends before it begins")
        self.spans.append({**row, **known, "start": start, "end": end})


def read_timeline(folder: Path) -> Timeline:
    """The spans that the folder keeps; empty where there are none. A damaged line is told in it."""
    gathered, damage = _Gathered(), []
    for name in (EARLIER_SPANS_FILE, SPANS_FILE):
        damage += Lines(folder / name, gathered.take).read()
    spans, iterations = [], []
    for row in gathered.spans:
        host = str(row.get("host", ""))
        shift = gathered.clocks[host].shift if host in gathered.clocks else 0.0
        start, end = row["start"] + shift, row["end"] + shift
        if row["role"] == RUN and row["name"] == "iteration" and isinstance(row.get("iteration"), int):
            iterations.append(Iteration(row["iteration"], start, end))
        else:
            pid = row.get("pid", 0)
            known = (row["role"], row["who"], row["name"], start, end, host)
            spans.append(Busy(*known, pid if isinstance(pid, int) else 0, str(row.get("note", ""))))
    spans.sort(key=lambda span: span.start)
    return Timeline(tuple(spans), tuple(iterations), tuple(gathered.clocks.values()), tuple(damage))


def typical(timeline: Timeline) -> Iteration | None:
    """The kept iteration of median length, without the first and the last, which have nothing before or after them.

    Of those only where there is no other.
    """
    latest = list({i.number: i for i in timeline.iterations}.values())
    inner = latest[1:-1] or latest[-1:]
    return sorted(inner, key=lambda i: i.end - i.start)[len(inner) // 2] if inner else None


def overlap(spans: Iterable[Busy], start: float, end: float) -> Overlap:
    """Who was busy within this time, and how much of it at once."""
    of_learner, of_actors = [], []
    for span in spans:
        piece = (max(start, span.start), min(end, span.end))
        if piece[0] >= piece[1]:
            continue
        if span.role == LEARNER and span.name in ("step", "weights", "snapshot"):
            of_learner.append(piece)
        elif span.role == ACTOR and span.name in ("rollout", "reward", "publish"):
            of_actors.append(piece)
    learner, actors = union(of_learner), union(of_actors)
    both = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in learner for b in actors)
    return Overlap(end - start, _length(learner), _length(actors), both)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as intervals that don't touch, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def lanes(spans: Iterable[Busy]) -> list[list[Busy]]:
    """The spans in as few lanes as needed so that no two in a lane overlap; a process does several things at once."""
    found: list[list[Busy]] = []
    for span in sorted(spans, key=lambda s: (s.start, s.end)):
        free = next((lane for lane in found if lane[-1].end <= span.start), None)
        if free is None:
            found.append([span])
        else:
            free.append(span)
    return found


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)
