"""A guard ends what a killed process leaves behind; no Ray in here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil

from cluster.processes import MARK, Guard, end, marked, marking

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def test_what_is_started_under_a_mark_is_found_with_its_descendants_and_nothing_else() -> None:
    mark = uuid.uuid4().hex
    with marking(mark):
        marked_one = subprocess.Popen(SLEEPER)
        parent = subprocess.Popen(
            [sys.executable, "-c", f"import subprocess; subprocess.Popen({SLEEPER!r}, env={{}}).wait()"]
        )
    other = subprocess.Popen(SLEEPER)
    try:
        assert MARK not in os.environ
        ends = time.monotonic() + 20
        while len(marked(mark)) < 3 and time.monotonic() < ends:
            time.sleep(0.05)
        assert len(marked(mark)) == 3
        assert end(mark) == 3 and not marked(mark)
        assert other.poll() is None and marked_one.poll() is not None and parent.poll() is not None
    finally:
        other.kill()
        other.wait()


def test_those_that_end_by_themselves_in_time_are_not_killed() -> None:
    mark = uuid.uuid4().hex
    with marking(mark):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
    assert end(mark, patience_s=20) == 0
    assert child.wait() == 0


def test_a_guard_outlives_a_kill_of_the_whole_tree_and_ends_what_is_left(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    code = (
        "import subprocess, sys, time\n"
        "from cluster.processes import Guard, marking\n"
        f"guard = Guard({mark!r})\n"
        f"with marking({mark!r}): child = subprocess.Popen({SLEEPER!r}, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    child = psutil.Process(int(driver.stdout.readline()))
    below = psutil.Process(driver.pid).children(recursive=True)
    assert [p.pid for p in below] == [child.pid]  # the guard is not in the tree, so a kill of the tree spares it
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    child.wait(timeout=20)
    assert not marked(mark)


def test_a_released_guard_is_gone() -> None:
    guard = Guard(uuid.uuid4().hex)
    began = time.monotonic()
    guard.release()
    guard.release()
    assert time.monotonic() - began < 10


def test_a_guard_ends_an_orphan_that_carries_no_mark_any_more_but_was_seen(tmp_path: Path) -> None:
    """Ray's agents write their titles over their environments; their parent dies with the driver."""
    mark = uuid.uuid4().hex
    orphan = f"import subprocess; p = subprocess.Popen({SLEEPER!r}, env={{}}); print(p.pid, flush=True); p.wait()"
    code = (
        "import subprocess, sys, time\n"
        "from cluster.processes import Guard, marking\n"
        f"guard = Guard({mark!r})\n"
        f"with marking({mark!r}):\n"
        f"    parent = subprocess.Popen([sys.executable, '-c', {orphan!r}], stdout=subprocess.PIPE, text=True)\n"
        "pid = int(parent.stdout.readline())\n"
        "guard.look()\n"
        "print(parent.pid, pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    parent, child = (psutil.Process(int(pid)) for pid in driver.stdout.readline().split())
    time.sleep(2)  # the guard looks
    parent.kill()
    driver.kill()
    driver.wait(10)
    assert child.wait(30) is None
