from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.paper import side_by_side as module
from cluster.paper.side_by_side import Outcome, Task, side_by_side

QUICK = (sys.executable, "-I", "-S", "-c")  # an interpreter that is there at once


def task(folder: Path, label: str, code: str, *needs: str) -> Task:
    return Task(label, (*QUICK, code), folder / f"{label}.txt", needs)


def span(folder: Path, label: str, *needs: str) -> Task:
    """Writes when it began and when it ended."""
    code = f"import time; f = open({str(folder / label)!r}, 'w'); f.write(repr(time.time())); time.sleep(0.25); "
    return task(folder, label, code + "f.write(' ' + repr(time.time())); f.close()", *needs)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def times(folder: Path, label: str) -> tuple[float, float]:
    began, ended = (folder / label).read_text().split()
    return float(began), float(ended)


def test_so_many_run_at_a_time_and_each_after_what_it_needs(tmp_path: Path) -> None:
    tasks = [span(tmp_path, "a"), span(tmp_path, "b", "a"), span(tmp_path, "c"), span(tmp_path, "d")]
    seen: list[int] = []
    outcomes = side_by_side(tasks, 2, 60, lambda running, done: seen.append(len(running)))
    assert [o.label for o in outcomes] == list("abcd") and not any(o.cause for o in outcomes)
    spans = {label: times(tmp_path, label) for label in "abcd"}
    assert spans["b"][0] >= spans["a"][1]
    assert max(seen) == 2 and seen[-1] == 0
    for label, (began, _) in spans.items():
        assert sum(other[0] <= began < other[1] for name, other in spans.items() if name != label) <= 1


def test_one_that_fails_costs_those_that_need_it_and_no_other(tmp_path: Path) -> None:
    tasks = [
        task(
            tmp_path,
            "bad",
            "import sys; print('first', flush=True); sys.exit('data.root: /sets has no folder; give another')",
        ),
        task(tmp_path, "after", "print('never')", "bad"),
        task(tmp_path, "later", "print('never')", "after"),
        task(tmp_path, "good", "print('fine')"),
        task(tmp_path, "mute", "import os; os._exit(3)"),
        task(
            tmp_path, "killed", "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
        ),
        Task("none", ("/nowhere/at/all",), tmp_path / "none.txt"),
    ]
    causes = {o.label: o.cause for o in side_by_side(tasks, 3, 60)}
    assert causes == {
        "bad": "data.root: /sets has no folder; give another",
        "after": "it needs bad, which failed",
        "later": "it needs after, which failed",
        "good": "",
        "mute": "it ended with status 3 without a word",
        "killed": "it was killed by signal 9, after 'so far'",
        "none": causes["none"],
    }
    assert causes["none"].startswith("it can't be started: ") and "/nowhere/at/all" in causes["none"]
    assert (tmp_path / "good.txt").read_text() == "fine\n"


def test_a_cause_is_of_this_attempt_and_not_of_an_earlier_one(tmp_path: Path) -> None:
    side_by_side([task(tmp_path, "a", "import sys; sys.exit('the first time')")], 1, 60)
    (outcome,) = side_by_side([task(tmp_path, "a", "import os; os._exit(4)")], 1, 60)
    assert outcome.cause == "it ended with status 4 without a word"
    assert "the first time" in (tmp_path / "a.txt").read_text()


def test_one_that_takes_too_long_is_ended_also_if_it_does_not_want_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    tasks = [task(tmp_path, "long", "import time; time.sleep(60)"), task(tmp_path, "stubborn", stubborn)]
    began = time.monotonic()
    outcomes = side_by_side(tasks, 2, 0.36)
    assert time.monotonic() - began < 20
    assert {o.cause for o in outcomes} == {"it was ended after its 0.0001 hours"}


def test_an_interruption_ends_what_runs_first(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"

    def interrupted(running: object, outcomes: object) -> None:
        ends = time.monotonic() + 20
        while not (pid.exists() and pid.read_text()) and time.monotonic() < ends:
            time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side([task(tmp_path, "a", code)], 1, 60, interrupted)
    assert not lives(int(pid.read_text()))


def test_what_cannot_be_asked_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="b needs a, which isn't before it"):
        side_by_side([task(tmp_path, "b", "", "a"), task(tmp_path, "a", "")], 1, 60)
    with pytest.raises(ValueError, match="jobs=0"):
        side_by_side([], 0, 60)
    assert side_by_side([], 1, 60) == []
    assert Outcome("a", tmp_path).cause == ""


def test_a_killed_starter_takes_its_processes_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = (
        "import os, sys, time; from cluster.paper.lifeline import end_with_starter; end_with_starter(patience_s=0.2); "
        f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    starter = (
        "from cluster.paper.side_by_side import Task, side_by_side; from pathlib import Path; import sys; "
        f"side_by_side([Task('a', (sys.executable, '-c', {child!r}), Path({str(tmp_path / 'log')!r}))], 1, 60)"
    )
    process = subprocess.Popen([sys.executable, "-c", starter], env=os.environ | {"PYTHONPATH": os.getcwd()})
    try:
        ends = time.monotonic() + 30
        while not (pid.exists() and pid.read_text()):
            assert process.poll() is None and time.monotonic() < ends
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    ends = time.monotonic() + 15
    while lives(int(pid.read_text())):
        assert time.monotonic() < ends
        time.sleep(0.05)
