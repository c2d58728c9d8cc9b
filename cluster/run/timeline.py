"""The timeline of a run: who was busy with what, and when, in spans.jsonl; `cluster.report.spans` reads it.

It is only looked at, and bounded: what can't be written is told and counted, and of a long run the last part stays.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster.files import JsonLines
from cluster.report.spans import ACTOR, EARLIER_SPANS_FILE, LEARNER, RANK, RUN, SPANS_FILE
from cluster.run.actor_pool import Call
from cluster.run.clocks import Clocks
from cluster.run.evaluations import EvaluationPart
from cluster.run.failures import Failure
from cluster.run.looking import ForLooking
from restoration.spans import Spans

MOST_BYTES = 4 << 20  # of each of the two files
CLOSE_S = 1.0
MOST_WAITING = 20_000  # lines, should they not be written for long
KIND = "the timeline (spans.jsonl)"  # as `ForLooking` tells of it


@dataclass
class Place:
    """Where a process was when it was last heard of, and when that was, by the driver's clock."""

    host: str
    pid: int
    heard: float


class Timeline:
    """Collects spans of the driver, of actors and of ranks; one thread uses it.

    Attributes:
        actors, ranks: by number, those that have been heard of.
        failed: calls of actors that failed, by reason.
    """

    def __init__(self, folder: Path, looking: ForLooking, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self.looking, self.most_bytes = folder, looking, most_bytes
        self.host = socket.gethostname()
        self.clocks = Clocks(self.host)
        self.actors: dict[int, Place] = {}
        self.ranks: dict[int, Place] = {}
        self.failed: dict[str, int] = {}
        self._lines: list[dict[str, Any]] = []
        self._told_clocks: dict[str, tuple[float, float]] = {}
        self._asked: dict[ray.ObjectRef, tuple[int, float]] = {}  # reference -> rank, when

    def add(self, role: str, who: str, name: str, start: float, end: float, **more: Any) -> None:
        """A span by the clock of `host`, the driver's if none is given."""
        more = {key: value for key, value in more.items() if value not in ("", None)}
        span = {"role": role, "who": who, "name": name, "start": round(start, 6), "end": round(end, 6)}
        self._lines.append({**span, "host": self.host, "pid": os.getpid(), **more})
        del self._lines[:-MOST_WAITING]

    def ended(self, call: Call, result: Any) -> None:
        """A call of an actor has ended, well or (a `Failure`) badly."""
        now, mono = time.time(), time.monotonic()
        began, who = now - (mono - call.began), f"actor {call.actor}"
        if isinstance(result, Failure):
            self.failed[result.reason] = self.failed.get(result.reason, 0) + 1
            what = "evaluation" if isinstance(call.task, EvaluationPart) else "rollout"
            self.add(ACTOR, who, f"{what} failed", began, now, note=result.reason)
            return
        found = result[2] if isinstance(result, tuple) and len(result) > 2 else getattr(result, "spans", None)
        if isinstance(found, Spans):  # a stand-in of a test has none
            self.actors[call.actor] = Place(found.host, found.pid, now)
            self._of(found, ACTOR, who, began, now)

    def iteration(self, number: int, began: float) -> None:
        """An iteration is done that began at `began`, by the monotonic clock; what has come till then is written."""
        now, mono = time.time(), time.monotonic()
        self.add(RUN, "iteration", "iteration", now - (mono - began), now, iteration=number)
        self.flush()

    def learner(self, spans: Spans, group: Any) -> None:
        """What the ranks did together, and a question to each of them, whose answers `look` finds.

        Args:
            group: of the ranks, or None.
        """
        self._of(spans, LEARNER, "learner", spans.arrived, spans.sent)
        if group is not None and not self._asked:
            now = time.time()
            with suppress(Exception):  # it is being closed: there is nobody to ask
                self._asked = {ref: (rank, now) for rank, ref in enumerate(group.spans())}

    def close(self, spans: Spans, group: Any) -> None:
        """As `learner`, for the last time: the answers are waited for, a moment."""
        self.learner(spans, group)
        if self._asked:
            refs = list(self._asked)
            ray.wait(refs, num_returns=len(refs), timeout=CLOSE_S)
            self.look()
        self.flush()

    def look(self) -> None:
        """Take what ranks have answered meanwhile."""
        if not self._asked:
            return
        for ref in self._answered():
            rank, asked = self._asked.pop(ref)
            with suppress(Exception):  # it died; whoever needs it finds that out
                found = ray.get(ref, timeout=1)
                self.ranks[rank] = Place(found.host, found.pid, time.time())
                self._of(found, RANK, f"rank {rank}", asked, time.time())

    def _answered(self) -> Sequence[ray.ObjectRef]:
        refs = list(self._asked)
        answered: Sequence[ray.ObjectRef] = ray.wait(refs, num_returns=len(refs), timeout=0)[0]
        return answered

    def processes(self, actors: Iterable[int], calls: Iterable[Call], ranks: int) -> list[dict[str, Any]]:
        """Actors and ranks for live.json: where each was heard of last, and what it was given to do.

        Args:
            actors: the numbers of those that there are.
            calls: those that are out.
        """
        now, mono = time.time(), time.monotonic()
        given: dict[int, list[Call]] = {}
        for call in calls:
            given.setdefault(call.actor, []).append(call)
        rows = []
        for actor in sorted({*actors, *given}):
            row = _row(ACTOR, f"actor {actor}", self.actors.get(actor))
            if mine := sorted(given.get(actor, ()), key=lambda call: call.began):
                row["doing"] = ", ".join(_doing(call) for call in mine)
                row["since"] = now - (mono - mine[0].began)
            rows.append(row)
        return rows + [_row(RANK, f"rank {r}", self.ranks.get(r)) for r in range(ranks)]

    def flush(self) -> None:
        """Write what has come; the files hold at most twice `most_bytes`."""
        lines = self._lines
        for host, bounds in self.clocks.bounds().items():
            if self._told_clocks.get(host) != bounds:
                self._told_clocks[host] = bounds
                lines.append({"clock": host, "low": round(bounds[0], 6), "high": round(bounds[1], 6)})
        if not lines:
            return
        path = self.folder / SPANS_FILE
        with self.looking.bearing(KIND):
            self.folder.stat()  # one that was removed is not made again
            if path.is_file() and path.stat().st_size > self.most_bytes:
                os.replace(path, self.folder / EARLIER_SPANS_FILE)
                known = self._told_clocks.items()  # the new file stands without the other
                lines = [*({"clock": h, "low": low, "high": high} for h, (low, high) in known), *lines]
            with JsonLines(path) as file:
                file.append(*lines)
            self._lines = []

    def _of(self, found: Spans, role: str, who: str, asked: float, received: float) -> None:
        self.clocks.heard(found.host, asked, found.arrived, found.sent, received)
        for span in found.spans:
            self.add(role, who, span.name, span.start, span.end, host=found.host, pid=found.pid, note=span.note)


def _row(role: str, name: str, place: Place | None) -> dict[str, Any]:
    if place is None:
        return {"role": role, "name": name, "where": "", "heard": None}
    return {"role": role, "name": name, "where": f"{place.host} pid {place.pid}", "heard": place.heard}


def _doing(call: Call) -> str:
    """What an actor was given, in words."""
    if isinstance(call.task, EvaluationPart):
        return "evaluation"
    return f"rollout {getattr(call.task, 'index', '')}".strip()
