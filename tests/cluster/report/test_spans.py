"""The timeline of a run as it is read, drawn and exported."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import cluster.cli.app as cli
from cluster.report.chrome_trace import chrome_trace
from cluster.report.figures import iteration_picture
from cluster.report.report import _iteration
from cluster.report.spans import (
    SPANS_FILE,
    Busy,
    Clock,
    Iteration,
    lanes,
    overlap,
    read_timeline,
    typical,
    union,
)
from tests.cluster.report.synthetic_run import T, line, write_spans


def test_what_is_kept_is_read_from_both_files_and_a_damaged_line_costs_no_other(tmp_path: Path) -> None:
    write_spans(tmp_path)
    with (tmp_path / SPANS_FILE).open("a") as file:
        file.write('nonsense\n{"role": "actor"}\n' + line("actor", "actor 1", "rollout", 9, 8) + '{"role": "act')
    found = read_timeline(tmp_path)
    assert len(found.spans) == 8 and [i.number for i in found.iterations] == [1, 2, 3]
    assert [told.split(": ")[0] for told in found.damage] == [f"{SPANS_FILE}:{n}" for n in (11, 12, 13)]
    assert "not JSON" in found.damage[0] and "'who'" in found.damage[1] and "ends before" in found.damage[2]
    assert read_timeline(tmp_path / "nowhere").spans == ()


def test_the_overlap_is_the_share_of_the_learners_work_beside_rollouts(tmp_path: Path) -> None:
    found = read_timeline(write_spans(tmp_path))
    at_once = overlap(found.within(T + 10, T + 20), T + 10, T + 20)
    assert (at_once.seconds, at_once.learner_s, at_once.actors_s, at_once.both_s) == (10, 5, 7, 4)
    assert at_once.share == pytest.approx(0.8)
    assert overlap([], T, T + 10).share is None
    assert union([(3, 4), (0, 1), (1, 2), (3.5, 3.8)]) == [(0, 2), (3, 4)]


def test_times_of_another_host_are_corrected_where_its_clock_is_off_for_certain(tmp_path: Path) -> None:
    write_spans(tmp_path)
    with (tmp_path / SPANS_FILE).open("a") as file:
        file.write(json.dumps({"clock": "far", "low": 4.9, "high": 5.1}) + "\n")
        file.write(json.dumps({"clock": "near", "low": -0.01, "high": 0.02}) + "\n")
    found = read_timeline(tmp_path)
    assert min(s.start for s in found.spans if s.host == "far") == pytest.approx(T + 15)
    assert min(s.start for s in found.spans if s.host == "head") == T + 10
    told = [str(clock) for clock in found.clocks]
    assert told[0] == "the clock of far is 5.000 s (+-0.100 s) behind the driver's: corrected"
    assert told[1] == "the clock of near differs from the driver's by 0.020 s at most"
    assert Clock("a", -0.3, -0.1).shift == pytest.approx(-0.2) and "ahead of" in str(Clock("a", -0.3, -0.1))


def test_the_typical_iteration_is_one_between_others_of_median_length(tmp_path: Path) -> None:
    found = read_timeline(write_spans(tmp_path))
    assert typical(found) == Iteration(2, T + 10, T + 20)
    assert typical(read_timeline(tmp_path / "nowhere")) is None


def test_what_a_process_does_at_once_gets_lanes_of_its_own() -> None:
    spans = [Busy("actor", "a", name, *when) for name, when in (("x", (0, 4)), ("y", (4, 6)), ("z", (3, 5)))]
    assert [[s.name for s in lane] for lane in lanes(spans)] == [["x", "y"], ["z"]]


def test_a_trace_has_a_process_for_everybody_and_no_lane_with_two_spans_at_once(tmp_path: Path) -> None:
    found = read_timeline(write_spans(tmp_path))
    trace = json.loads(json.dumps(chrome_trace(found, found.spans, found.iterations)))
    events = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    named = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert list(named.values()) == ["iterations", "learner (head pid 7)", "rank 0 (head pid 7)", "actor 0 (far pid 70)"]
    assert trace["otherData"]["begins"] == T and min(e["ts"] for e in events) == 0
    step = next(e for e in events if e["name"] == "step")
    assert (step["ts"], step["dur"], named[step["pid"]]) == (13e6, 4.5e6, "learner (head pid 7)")
    of_lane: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        of_lane.setdefault((event["pid"], event["tid"]), []).append(event)
    assert len({tid for pid, tid in of_lane if named[pid].startswith("actor")}) == 2
    for lane in of_lane.values():
        ordered = sorted(lane, key=lambda e: e["ts"])
        assert all(a["ts"] + a["dur"] <= b["ts"] for a, b in zip(ordered, ordered[1:], strict=False))


def test_the_command_writes_one_iteration_or_all_and_tells_what_it_does_not_have(tmp_path: Path) -> None:
    folder, out = write_spans(tmp_path / "run"), tmp_path / "trace.json"

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(cli.app, ["timeline", *map(str, arguments)])

    whole = call(folder, "--out", out)
    assert whole.exit_code == 0 and whole.stdout.strip() == str(out)
    everything = json.loads(out.read_text())["traceEvents"]
    one = call(folder, "--iteration", 3, "--out", out)
    kept = [e["name"] for e in json.loads(out.read_text())["traceEvents"] if e["ph"] == "X"]
    assert kept == ["iteration 3", "checkpoint"] and len(everything) > len(kept)
    assert "80 % of that beside rollouts" in call(folder, "--iteration", 2, "--out", out).stderr
    assert one.exit_code == 0
    gone = call(folder, "--iteration", 9, "--out", out)
    assert gone.exit_code == 2 and "kept are 1 to 3" in gone.stderr
    (tmp_path / "empty").mkdir()
    assert call(tmp_path / "empty", "--out", out).exit_code == 2
    assert call(tmp_path / "nowhere", "--out", out).exit_code == 2


def test_a_report_without_spans_or_with_damaged_ones_has_no_picture_of_them(tmp_path: Path) -> None:
    assert _iteration(tmp_path)[0] == ""
    (tmp_path / SPANS_FILE).write_bytes(b"\xff\xfe damaged\n")
    assert _iteration(tmp_path)[0] == ""
    write_spans(tmp_path)
    with (tmp_path / SPANS_FILE).open("a") as file:
        file.write('{"clock": "<far>", "low": 4.9, "high": 5.1}\n')
    picture, note = _iteration(tmp_path)
    assert "timeline of one iteration" in picture and "the clock of &lt;far&gt; is 5.000 s" in note


def test_a_picture_of_many_actors_shows_the_first_and_says_how_many_there_are(tmp_path: Path) -> None:
    write_spans(tmp_path)
    with (tmp_path / SPANS_FILE).open("a") as file:
        for actor in range(1, 40):
            file.write(line("actor", f"actor {actor}", "rollout", 11, 13))
            file.write(line("actor", f"actor {actor}", "unheard of", 13, 14))
    found = read_timeline(tmp_path)
    picture = iteration_picture(found, found.iterations[1])
    assert picture is not None and Image.open(io.BytesIO(picture)).size[1] < 1000
    assert iteration_picture(found, Iteration(9, T - 50, T - 40)) is None
