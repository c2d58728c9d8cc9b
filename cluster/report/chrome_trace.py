"""Spans of a run in the JSON that trace viewers open (Perfetto, chrome://tracing): a process each, lanes as threads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cluster.report.spans import ACTOR, LEARNER, RANK, RUN, Busy, Iteration, Timeline, lanes

MICRO = 1e6
FIRST_ROLES = (RUN, LEARNER, RANK, ACTOR)  # in this order from the top
ITERATIONS = 1  # the number of the first process of the trace


def chrome_trace(timeline: Timeline, spans: Iterable[Busy], iterations: Iterable[Iteration]) -> dict[str, Any]:
    """The trace; its times begin with the earliest of them, as `otherData` says which that is."""
    chosen, windows = list(spans), list(iterations)
    begin = min([*(s.start for s in chosen), *(i.start for i in windows)], default=0.0)
    events: list[dict[str, Any]] = []
    events += _named(ITERATIONS, "iterations", 0)
    for window in windows:
        name = f"iteration {window.number}"
        events.append(_complete(name, RUN, window.start - begin, window.end - window.start, ITERATIONS, 1, {}))
    groups: dict[str, list[Busy]] = {}
    for span in chosen:
        groups.setdefault(span.who, []).append(span)
    for number, who in enumerate(sorted(groups, key=lambda w: _order(groups[w][0])), ITERATIONS + 1):
        places = dict.fromkeys((s.host, s.pid) for s in groups[who])
        where = ", ".join(f"{host} pid {pid}" for host, pid in places)
        events += _named(number, f"{who} ({where})", number)
        for lane, row in enumerate(lanes(groups[who]), 1):
            for span in row:
                details = {"note": span.note, "host": span.host, "pid": span.pid}
                events.append(_complete(span.name, span.role, span.start - begin, span.seconds, number, lane, details))
    other = {"begins": begin, "clocks": [str(clock) for clock in timeline.clocks], "damage": list(timeline.damage)}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}


def _complete(
    name: str, category: str, start_s: float, seconds: float, process: int, thread: int, details: dict[str, Any]
) -> dict[str, Any]:
    kept = {key: value for key, value in details.items() if value not in ("", 0)}
    times = {"ts": round(start_s * MICRO, 1), "dur": round(seconds * MICRO, 1)}
    return {"name": name, "cat": category, "ph": "X", **times, "pid": process, "tid": thread, "args": kept}


def _named(process: int, name: str, order: int) -> list[dict[str, Any]]:
    return [
        {"name": "process_name", "ph": "M", "pid": process, "args": {"name": name}},
        {"name": "process_sort_index", "ph": "M", "pid": process, "args": {"sort_index": order}},
    ]


def _order(span: Busy) -> tuple[int, int, str]:
    role = FIRST_ROLES.index(span.role) if span.role in FIRST_ROLES else len(FIRST_ROLES)
    number = span.who.rpartition(" ")[2]
    return role, int(number) if number.isdecimal() else 0, span.who
