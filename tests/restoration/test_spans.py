"""Spans of a process: bounded, and bent by no clock that is set."""

from __future__ import annotations

import time

import pytest

from restoration.spans import SpanLog


def test_a_span_lasts_as_long_as_its_work_though_the_clock_is_set_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    log, monotonic, wall = SpanLog(), [100.0], [5000.0]
    monkeypatch.setattr(time, "monotonic", lambda: monotonic[0])
    monkeypatch.setattr(time, "time", lambda: wall[0])
    with log.span("step", "iteration 3"):
        monotonic[0] += 2
        wall[0] -= 3600  # by its owner
    monotonic[0] += 1
    found = log.take(arrived=99.0)
    (span,) = found.spans
    assert (span.name, span.note, span.end - span.start) == ("step", "iteration 3", 2.0)
    assert span.end == found.sent - 1 == wall[0] - 1 and found.arrived == found.sent - 4
    assert log.take().spans == ()


def test_work_that_fails_is_a_span_too_and_of_too_many_the_oldest_go() -> None:
    log = SpanLog(most=2)
    for name in ("a", "b", "c"):
        with pytest.raises(KeyError), log.span(name):
            raise KeyError
    assert [span.name for span in log.take().spans] == ["b", "c"]
