"""What a cluster of our own is watched with: left out of ray.init, started later, ended before Ray is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray._private.node import Node

from cluster.watched_later import LATER, WatchedLater


def begun(monkeypatch: pytest.MonkeyPatch, **starts: Any) -> WatchedLater:
    """Those processes as `starts` has them, left out of a start of Ray."""
    watched, node = WatchedLater("test"), SimpleNamespace(webui_url="127.0.0.1:1")
    for name in LATER:
        monkeypatch.setattr(Node, name, starts.get(name, lambda node, **options: None))
    with watched.left_out():
        Node.start_api_server(node, include_dashboard=True, raise_on_failure=True)
        Node.start_monitor(node)
        Node.start_log_monitor(node)
    return watched


def wait_for(lines: list[str]) -> str:
    for _ in range(200):
        if lines:
            return lines[0]
        time.sleep(0.05)
    raise AssertionError("nothing was told")


def test_nothing_starts_with_ray_and_everything_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    starts = {name: lambda node, name=name, **options: started.append(name) for name in LATER}
    watched = begun(monkeypatch, **starts)
    assert started == []
    lines: list[str] = []
    watched.start(lines.append)
    assert wait_for(lines) == "Ray dashboard: http://127.0.0.1:1" == f"Ray dashboard: {watched.url}"
    assert sorted(started) == sorted(LATER)
    Node.start_monitor(SimpleNamespace())
    assert len(started) == 4  # Ray has its own methods back
    watched.stop()


def test_a_dashboard_that_cannot_start_is_told_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(node: Any, **options: Any) -> None:
        raise RuntimeError("the port is taken\nand more")

    watched = begun(monkeypatch, start_api_server=refuse)
    lines: list[str] = []
    watched.start(lines.append)
    assert wait_for(lines).startswith("WARNING: Ray's dashboard can't be started") and "port is taken" in lines[0]
    watched.stop()


def test_the_end_of_a_run_waits_for_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def hang(node: Any, **options: Any) -> None:
        children.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "dashboard.py"]))
        assert children[0].wait() < 0
        raise RuntimeError("it was killed")

    watched = begun(monkeypatch, start_api_server=hang)
    lines: list[str] = []
    watched.start(lines.append)
    while not children:
        time.sleep(0.01)
    began = time.monotonic()
    watched.stop()
    assert time.monotonic() - began < 5 and not psutil.pid_exists(children[0].pid) and lines == []


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="no such policy here")
def test_it_takes_what_is_left_over_until_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    policies: list[int] = []
    child: list[psutil.Popen] = []

    def start(node: Any, **options: Any) -> None:
        child.append(psutil.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
        policies.append(os.sched_getscheduler(child[0].pid))

    watched = begun(monkeypatch, start_api_server=start)
    lines: list[str] = []
    watched.start(lines.append)
    wait_for(lines)
    assert policies == [os.SCHED_IDLE]
    assert os.sched_getscheduler(child[0].pid) == os.SCHED_OTHER and child[0].nice() == 15
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    child[0].kill()
    watched.stop()
