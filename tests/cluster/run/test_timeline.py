"""What the driver writes of its run's timeline, and what it knows by that of its processes."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from actors.work import WorkItem, WorkReport
from cluster.report.spans import EARLIER_SPANS_FILE, SPANS_FILE, read_timeline
from cluster.run import timeline as module
from cluster.run.actor_pool import Call
from cluster.run.clocks import Clocks
from cluster.run.evaluations import EvaluationPart
from cluster.run.failures import Failure, Kind
from cluster.run.looking import ForLooking
from cluster.run.timeline import Timeline
from restoration.spans import Span, SpanLog, Spans


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def timeline(tmp_path: Path, told: list[str]) -> Timeline:
    return Timeline(tmp_path, ForLooking(told.append))


def report(host: str = "far", ahead_s: float = 0.0) -> WorkReport:
    """Of an actor whose clock is ahead by so many seconds."""
    now = time.time() + ahead_s
    spans = (Span("rollout", now - 3, now - 1, "item 7"), Span("reward", now - 1, now))
    return WorkReport(7, 0, 2, spans=Spans(host, 70, now - 3, now, spans))


def call(task: Any = None, actor: int = 1, began_ago: float = 3.0) -> Call:
    return Call(actor, task or WorkItem(7, ("a", "b")), time.monotonic() - began_ago)


def test_what_actors_and_the_learner_report_is_in_the_folder_after_the_iteration(
    timeline: Timeline, tmp_path: Path
) -> None:
    timeline.ended(call(), report())
    log = SpanLog()
    with log.span("step", "iteration 1"):
        pass
    timeline.learner(log.take(), None)
    timeline.iteration(1, time.monotonic() - 5)
    found = read_timeline(tmp_path)
    assert [(s.role, s.who, s.name) for s in found.spans] == [
        ("actor", "actor 1", "rollout"),
        ("actor", "actor 1", "reward"),
        ("learner", "learner", "step"),
    ]
    assert found.spans[0].note == "item 7" and found.spans[0].host == "far" and found.damage == ()
    (iteration,) = found.iterations
    assert iteration.number == 1 and iteration.end - iteration.start == pytest.approx(5, abs=0.1)


def test_a_call_that_failed_is_a_span_with_its_reason_and_is_counted(timeline: Timeline, tmp_path: Path) -> None:
    timeline.ended(call(), Failure(Kind.TRANSIENT, "process", "killed"))
    part = EvaluationPart(1, ("x",), None)
    timeline.ended(call(part), Failure(Kind.TRANSIENT, "process", "killed"))
    timeline.ended(call(part), ([], {}, SpanLog().take()))
    timeline.ended(call(), WorkReport(8, 0, 2))  # of a stand-in
    timeline.flush()
    names = [(s.name, s.note) for s in read_timeline(tmp_path).spans]
    assert names == [("rollout failed", "process"), ("evaluation failed", "process")]
    assert timeline.failed == {"process": 2}


def test_a_host_whose_clock_is_off_is_found_out_and_its_spans_put_right(timeline: Timeline, tmp_path: Path) -> None:
    timeline.ended(call(), report("late", ahead_s=-100))
    timeline.ended(call(), report("right"))
    timeline.ended(call(), report(socket.gethostname(), ahead_s=-100))  # by this very clock: it was set meanwhile
    timeline.flush()
    found = read_timeline(tmp_path)
    clocks = {clock.host: clock for clock in found.clocks}
    assert clocks.keys() == {"late", "right"}
    assert clocks["late"].shift == pytest.approx(100, abs=0.5) and clocks["right"].shift == pytest.approx(0, abs=0.1)
    put_right = [s for s in found.spans if s.host == "late"]
    assert all(abs(time.time() - s.end) < 5 for s in put_right)


def test_bounds_of_a_clock_narrow_with_every_exchange_and_follow_one_that_is_set() -> None:
    clocks = Clocks("here")
    clocks.heard("far", asked=100.0, arrived=95.0, sent=96.0, received=102.0)  # 5 to 6 behind
    clocks.heard("far", asked=200.0, arrived=194.9, sent=196.0, received=201.5)
    assert clocks.bounds()["far"] == pytest.approx((5.1, 5.5))
    clocks.heard("far", asked=300.0, arrived=300.0, sent=301.0, received=301.1)  # set right
    assert clocks.bounds()["far"] == pytest.approx((0.0, 0.1))


def test_the_files_stay_bounded_and_the_last_part_of_a_long_run_stays(tmp_path: Path, told: list[str]) -> None:
    timeline = Timeline(tmp_path, ForLooking(told.append), most_bytes=3000)
    timeline.ended(call(), report("late", ahead_s=-100))
    for number in range(1, 200):
        timeline.add("learner", "learner", "step", time.time(), time.time())
        timeline.iteration(number, time.monotonic())
        sizes = [p.stat().st_size for p in tmp_path.glob("spans*.jsonl")]
        assert sum(sizes) < 2 * 3000 + 1000
    found = read_timeline(tmp_path)
    assert found.iterations[-1].number == 199 and len(found.iterations) > 5 and not told
    assert [clock.host for clock in found.clocks] == ["late"]  # though its line was long ago
    assert (tmp_path / EARLIER_SPANS_FILE).is_file()


def test_a_timeline_that_cannot_be_written_is_told_once_ends_nothing_and_is_made_up_for(
    timeline: Timeline, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / SPANS_FILE).mkdir()
    for number in (1, 2):
        timeline.iteration(number, time.monotonic())
    assert len(told) == 1 and "the timeline (spans.jsonl) is missing, and the run goes on without it" in told[0]
    assert timeline.looking.missing == {module.KIND: 2}
    (tmp_path / SPANS_FILE).rmdir()
    timeline.iteration(3, time.monotonic())
    assert [i.number for i in read_timeline(tmp_path).iterations] == [1, 2, 3]
    monkeypatch.setattr(module, "MOST_WAITING", 5)
    (tmp_path / SPANS_FILE).rename(tmp_path / "kept")
    (tmp_path / SPANS_FILE).mkdir()
    for number in range(100):
        timeline.iteration(number, time.monotonic())
    assert len(timeline._lines) <= 5


class Ranks:
    """Two ranks; the second died."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answered: list[str] = []
        self.asked = 0
        monkeypatch.setattr(module, "ray", self)

    def spans(self) -> list[Any]:
        self.asked += 1
        return ["rank 0", "rank 1"]

    def wait(self, refs: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        return [ref for ref in refs if ref in self.answered], []

    def get(self, ref: Any, timeout: float) -> Spans:
        if ref == "rank 1":
            raise ConnectionError("it died")
        now = time.time()
        return Spans("gpu1", 71, now, now, (Span("step", now - 1, now),))


def test_ranks_are_asked_beside_the_run_and_one_that_died_or_answers_late_costs_nothing(
    timeline: Timeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = Ranks(monkeypatch)
    timeline.learner(SpanLog().take(), ranks)
    timeline.look()
    timeline.learner(SpanLog().take(), ranks)
    assert ranks.asked == 1 and not timeline.ranks  # they have not answered yet
    ranks.answered = ["rank 0", "rank 1"]
    timeline.look()
    assert timeline.ranks.keys() == {0} and timeline.ranks[0].host == "gpu1"
    timeline.close(SpanLog().take(), ranks)
    assert ranks.asked == 2
    assert [(s.role, s.who, s.name) for s in read_timeline(tmp_path).spans] == [("rank", "rank 0", "step")] * 2


def test_processes_are_told_with_where_they_are_and_what_they_were_given(timeline: Timeline) -> None:
    timeline.ended(call(), report())
    rows = timeline.processes(range(2), [call(began_ago=4), call(EvaluationPart(1, ("x",), None))], ranks=1)
    assert [row["name"] for row in rows] == ["actor 0", "actor 1", "rank 0"]
    assert rows[0] == {"role": "actor", "name": "actor 0", "where": "", "heard": None}
    assert rows[1]["where"] == "far pid 70" and rows[1]["doing"] == "rollout 7, evaluation"
    assert rows[1]["since"] == pytest.approx(time.time() - 4, abs=0.5)
    json.dumps(rows)
