"""What a run is doing, told from its folder: running, finished, killed, damaged, read-only, of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pydantic
import pytest

from cluster.report.lines import MOST_TOLD, Lines
from cluster.report.live import BEAT_LATE_S, LIVE_FILE, TURN_LATE_S
from cluster.report.status import POINTS, Status, Watched, read_status
from cluster.run.folder_lock import locked
from learner import checkpoint
from tests.cluster.report.synthetic_run import make_run, write_spans

HERE = socket.gethostname()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 60 iterations as it ends."""
    folder = make_run(tmp_path_factory.mktemp("runs") / "demo", images=3)
    checkpoint.write(folder / "checkpoints", 60, {"weights.safetensors": b"w"})
    (folder / "quarantine.jsonl").write_text('{"what": "g1", "reason": "picture", "detail": "cut off"}\n')
    beat(folder, "finished")
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The same, to be changed; its driver is running by what it says of itself."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("metrics.jsonl", "config.yaml", "run.json", "quarantine.jsonl"):
        (folder / name).write_bytes((finished / name).read_bytes())
    (folder / "config.yaml").write_text("name: demo\niterations: 100\n")
    beat(folder, "running")
    return folder


def beat(folder: Path, state: str, ago_s: float = 0.0, turned_ago_s: float | None = 0.5, **more: Any) -> None:
    now = time.time()
    said = {"time": now - ago_s, "state": state, "pid": os.getpid(), "host": HERE, "doing": "", "run_id": "ab12"}
    said["turned"] = None if turned_ago_s is None else now - turned_ago_s
    path = folder / LIVE_FILE
    path.write_text(json.dumps(said | more))
    os.utime(path, (now - ago_s, now - ago_s))


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """The lock, by a process that isn't the driver of live.json."""
    code = (
        "from pathlib import Path; from cluster.run.folder_lock import locked\n"
        f"with locked(Path({str(folder)!r})): print(flush=True); input()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.communicate(b"\n", timeout=20)


def test_a_finished_run_is_told_with_all_that_its_folder_has(finished: Path) -> None:
    found = read_status(finished)
    assert (found.state, found.why, found.iteration, found.iterations) == ("finished", "", 60, 60)
    assert found.left == "" and found.seconds == 522 and found.damage == ()
    assert found.reward is not None and len(found.reward.course) == POINTS
    assert found.reward.last - found.reward.first == pytest.approx(0.3, abs=0.4)
    assert list(found.terms) == ["deqa", "psnr"]
    assert found.phases["learn"] == pytest.approx(3.2) and "iteration" not in found.phases
    assert found.iteration_s == pytest.approx(8.7) and found.quarantined == {"picture": 1}
    held = {figure.name: figure for figure in found.heldout}
    assert found.heldout_of == 60 and held["psnr"].base == 24.5 and held["psnr"].now == pytest.approx(24.7)
    assert held["psnr"].averaged is None and "ssim" not in held  # which was not measured again
    assert found.checkpoint is not None and (found.checkpoint.iteration, found.checkpoint.age_s < 60) == (60, True)
    assert found.alarms == ("iteration 60: the reward rises while ssim falls by 0.1 <b>",)


def test_a_running_run_is_told_by_its_lock_and_what_its_driver_says(run: Path) -> None:
    now = time.time()
    actor = {"role": "actor", "name": "actor 0", "where": "n1 pid 5", "doing": "rollout 8", "since": now - 3}
    said = {"left": "about 4 min left", "waiting": 6, "waiting_mb": 1.5, "rolling": 2, "failed_calls": {"process": 1}}
    beat(run, "running", processes=[{**actor, "heard": now - 9}], evaluation="iteration 60 (now)", **said)
    with locked(run):
        found = read_status(run, now)
    assert (found.state, found.left, found.waiting, found.rolling) == ("running", "about 4 min left", 6, 2)
    assert found.failed_calls == {"process": 1} and found.evaluation == "iteration 60 (now)"
    (process,) = found.processes
    assert process.doing == "rollout 8 for 3.0 s" and process.heard_s == pytest.approx(9)
    beat(run, "running")  # one that knows no pace yet
    with locked(run):
        assert read_status(run).left == "about 5 min 48 s left, besides evaluations"
        beat(run, "evaluating")
        assert read_status(run).state == "evaluating"


def test_a_killed_driver_is_dead_with_the_command_that_goes_on(run: Path) -> None:
    beat(run, "running", ago_s=300, waiting=6, left="about 4 min left")
    found = read_status(run)
    assert found.state == "dead" and f"go on with: restorl train --resume {run}" in found.why
    assert "its last sign is of 5 min ago" in found.why
    assert found.waiting is None and found.left == "" and found.processes == ()  # of a past that is over
    beat(run, "running")  # killed this very moment: the lock says so
    assert read_status(run).state == "dead"


def test_a_driver_whose_loop_hangs_or_that_was_stopped_is_stalled(run: Path) -> None:
    with locked(run):
        beat(run, "running", turned_ago_s=TURN_LATE_S + 20)
        hanging = read_status(run)
        beat(run, "running", turned_ago_s=TURN_LATE_S + 20, doing="the learner starts again")
        waiting = read_status(run)
        beat(run, "running", ago_s=BEAT_LATE_S + 5)
        silent = read_status(run)
        beat(run, "starting", turned_ago_s=None, began=time.time() - 400)  # which may take long
        starting = read_status(run)
    assert (starting.state, starting.why) == ("starting", "for 6 min 40 s")
    assert {hanging.state, waiting.state, silent.state} == {"stalled"}
    assert "went round last 3 min 20 s ago; look at its output" in hanging.why
    assert "since then: the learner starts again" in waiting.why
    assert "its last sign is of 35 s ago" in silent.why


def test_a_run_of_another_machine_whose_lock_is_not_seen_lives_as_long_as_it_beats(run: Path) -> None:
    beat(run, "running", host="elsewhere")
    assert read_status(run).state == "running"
    beat(run, "running", ago_s=BEAT_LATE_S + 5, host="elsewhere")
    assert read_status(run).state == "dead"


def test_a_clock_that_is_off_makes_no_living_run_a_dead_one(run: Path) -> None:
    """That of the driver's host, an hour behind; the file's time is the file server's."""
    beat(run, "running", host="elsewhere", time=time.time() - 3600, turned=time.time() - 3600.5)
    assert read_status(run).state == "running"


def test_a_clock_that_was_ahead_makes_no_dead_run_a_living_one(run: Path) -> None:
    beat(run, "running", ago_s=300, host="elsewhere", time=time.time() + 3600)
    assert read_status(run).state == "dead"


def test_an_audit_that_holds_the_lock_makes_no_dead_run_alive(run: Path) -> None:
    beat(run, "running", ago_s=300)
    with held_by_another(run):
        found = read_status(run)
    assert found.state == "dead" and "uses the folder" in found.why


@pytest.mark.parametrize(("state", "why"), [("stopped", "stopped after iteration 60"), ("failed", "Fatal: disk full")])
def test_a_run_that_ended_early_says_how_and_how_it_goes_on(state: str, why: str, run: Path) -> None:
    beat(run, state, doing=why)
    found = read_status(run)
    assert found.state == state and found.why == f"{why}; go on with: restorl train --resume {run}"
    beat(run, state, doing=f"{why}; go on with: restorl train --resume x")  # said already
    assert read_status(run).why == f"{why}; go on with: restorl train --resume x"


def test_a_run_of_an_earlier_version_which_says_nothing_of_itself_is_told_by_what_it_left(run: Path) -> None:
    (run / LIVE_FILE).unlink()
    with locked(run):
        assert read_status(run).state == "running"
    assert read_status(run).state == "stopped"
    (run / "ledger.json").write_text("{}")
    assert read_status(run).state == "stopped"  # it was resumed for 100 iterations since
    (run / "config.yaml").write_text("iterations: 60")
    assert read_status(run).state == "finished"


def test_a_finished_run_that_was_resumed_for_more_and_killed_before_its_last_evaluation_is_dead(run: Path) -> None:
    """Its ledger is that of its first end."""
    (run / "ledger.json").write_text("{}")
    (run / "config.yaml").write_text("iterations: 60")
    about = json.loads((run / "run.json").read_text())
    for finished, state in ((40, "dead"), (None, "dead"), (60, "finished")):
        (run / "run.json").write_text(json.dumps(about | {"finished": finished}))
        beat(run, "running", ago_s=300)
        found = read_status(run)
        assert found.state == state and ("--resume" in found.why) == (state == "dead")


def test_a_run_of_a_single_process_is_finished_by_its_last_file_and_never_resumed(run: Path) -> None:
    (run / "run.json").unlink()
    beat(run, "running", run_id="demo-single")
    with locked(run):
        assert read_status(run).state == "running"
    dead = read_status(run)
    assert dead.state == "dead" and "resume" not in dead.why
    (run / "run.json").write_text('{"run_id": "demo-single", "seconds": 3}')
    (run / "config.yaml").write_text("iterations: 60")
    assert read_status(run).state == "finished"  # killed right after


FILES = ("metrics.jsonl", "quarantine.jsonl", "spans.jsonl", "live.json", "run.json", "config.yaml")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"\xff\xfe\x00nonsense\n", b"{[\n", b"[1, 2]\n", b'{"time": "x"}\n'])
def test_what_is_damaged_is_told_and_the_rest_stands(name: str, content: bytes, run: Path) -> None:
    with (run / name).open("ab" if name.endswith(".jsonl") else "wb") as file:
        file.write(content)
    found = read_status(run)
    an_object = name in ("run.json", "config.yaml") and content.startswith(b'{"')  # which may lack anything
    assert an_object or [told for told in found.damage if told.startswith(name)], found.damage
    assert len(found.damage) == int(not an_object)
    assert found.reward is not None and found.iteration == 60 and found.quarantined == {"picture": 1}


def test_of_many_damaged_lines_the_first_are_told_and_the_others_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n" + "nonsense\n" * 50 + '{"a": 1}\n{"a": 2')
    rows: list[dict[str, Any]] = []
    told = Lines(tmp_path / "a.jsonl", rows.append, needs=("a",)).read()
    assert rows == [{"a": 1}] and len(told) == MOST_TOLD + 1
    assert told[0] == "a.jsonl:1: it has no 'a'" and told[-1] == "a.jsonl: 46 more damaged lines"


def test_a_record_with_other_values_than_are_written_there_costs_no_other(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "iteration": "many"}\n{"kind": "alarm", "iteration": 61}\n')
        file.write('{"kind": "train", "iteration": 61, "reward_mean": null, "dropped:stale": 3, "learn_s": "long"}\n')
    found = read_status(run)
    assert found.iteration == 61 and found.dropped == {"stale": 3} and len(found.damage) == 2


def test_a_run_that_is_watched_is_read_on_from_where_it_was(run: Path) -> None:
    watched = Watched(run)
    first = watched.status()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "iteration": 61, "reward_mean": 9.5}\n{"kind": "train", "iter')
    second = watched.status()
    assert (first.iteration, second.iteration) == (60, 61) and second.damage == ()
    assert second.reward is not None and second.reward.last == 9.5
    with (run / "metrics.jsonl").open("a") as file:
        file.write('ation": 62}\n')
    assert watched.status().iteration == 62
    kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[:20]  # as a resume cuts it off
    (run / "new").write_text("".join(kept))
    (run / "new").replace(run / "metrics.jsonl")
    assert watched.status().iteration == read_status(run).iteration < 30


def test_the_overlap_of_a_typical_iteration_and_clocks_that_are_off_are_told(run: Path) -> None:
    write_spans(run)
    with (run / "spans.jsonl").open("a") as file:
        file.write('{"clock": "far", "low": 4.9, "high": 5.1}\n{"clock": "near", "low": -1, "high": 1}\n')
    found = read_status(run)
    assert found.overlap_of == 2 and found.overlap == pytest.approx(0.6)  # the rollouts were 5 s later
    assert len(found.clocks) == 1 and "far" in found.clocks[0]


def test_a_look_changes_nothing_in_the_folder_which_may_be_read_only(run: Path) -> None:
    write_spans(run)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")}
    for path in (*run.iterdir(), run):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        read_status(run)
    finally:
        run.chmod(0o755)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in run.rglob("*")} == before


def test_a_folder_that_is_no_run_is_refused_and_one_that_has_just_begun_is_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the folder of a run"):
        read_status(tmp_path)
    (tmp_path / "config.yaml").write_text("iterations: 5")
    beat(tmp_path, "starting")
    with locked(tmp_path):
        found = read_status(tmp_path)
    assert (found.state, found.iteration, found.reward, found.heldout) == ("starting", 0, None, ())
    assert found.silent_s is None


def test_a_status_goes_through_json_as_it_is(finished: Path) -> None:
    found = read_status(finished)
    text = json.dumps(asdict(found), allow_nan=False)
    assert pydantic.TypeAdapter(Status).validate_json(text) == found
