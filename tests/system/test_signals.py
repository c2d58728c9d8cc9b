"""SIGTERM does what Ctrl-C does; SIGKILL leaves nobody behind."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from cluster.report.run_audit import audit_run
from tests.system.conftest import Run, Start
from trajectories.audit import Ledger

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


def family(run: Run) -> list[psutil.Process]:
    return [p for p in psutil.Process(run.process.pid).children(recursive=True) if p.is_running()]


def left(processes: list[psutil.Process], within_s: float = 30.0) -> list[str]:
    """Of these, the ones that still run after a while."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return []
        time.sleep(0.2)
    return [" ".join(p.cmdline()) or p.name() for p in alive]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_in_order_with_the_hint_to_resume(start: Start, number: int, status: int) -> None:
    run = start("run", "iterations=100", "source.max_staleness=1")
    run.wait_for_iteration(2)
    processes = family(run)
    os.kill(run.process.pid, number)
    assert run.wait(120) == status, run.output()
    assert f"--resume {run.folder}" in run.output() and "Traceback" not in run.output()
    assert left(processes) == []
    done = run.iteration()
    resumed = start("run", f"iterations={done + 1}", resume=True)
    assert resumed.wait() == 0, resumed.output()
    report, _ = audit_run(run.folder)
    assert report.ok, report.render()


def test_a_signal_ends_a_run_whose_learner_is_coming_back_and_its_resume_bears_a_store_that_is_gone(
    start: Start,
) -> None:
    run = start("run", "iterations=100", "source.max_staleness=1")
    run.wait_for_iteration(2)
    processes = family(run)
    run.kill("ray::RankProcess")
    run.wait_for_output("starting again from the last checkpoint")
    os.kill(run.process.pid, signal.SIGTERM)
    run.wait_for_output("stopping after iteration", timeout_s=10)  # not when the learner is there again
    assert run.wait(120) == 143, run.output()
    assert left(processes) == [] and "Traceback" not in run.output()

    shutil.rmtree(run.folder / "store")
    resumed = start("run", f"iterations={run.iteration() + 2}", resume=True)
    assert resumed.wait() == 0, resumed.output()
    assert "the store (embedded) has nothing of this run" in resumed.output()
    assert "rollout batches, as many as" in resumed.output()
    batches = {int(entry.group_id.split("-")[0]) for entry in Ledger.read(run.folder / "ledger.json").entries}
    assert min(batches) >= 2  # what the first iterations used is not made again
    report, _ = audit_run(run.folder)
    assert report.ok, report.render()


def test_a_signal_while_things_start_leaves_no_process(start: Start) -> None:
    run = start("run")
    deadline = time.monotonic() + 120
    while not run.processes("raylet"):
        assert time.monotonic() < deadline, run.output()
        time.sleep(0.05)
    time.sleep(2)
    processes = family(run)
    os.kill(run.process.pid, signal.SIGTERM)
    assert run.wait(120) == 143, run.output()
    assert left(processes) == [] and "Traceback" not in run.output()


def test_nothing_outlives_a_driver_that_was_killed_and_the_run_goes_on(start: Start) -> None:
    run = start("run", "iterations=4")
    run.wait_for_iteration(2)
    processes = family(run)
    assert any("valkey-server" in " ".join(p.cmdline()) for p in processes)
    run.process.kill()
    run.wait(30)
    assert left(processes, within_s=60) == []
    resumed = start("run", resume=True)
    assert resumed.wait() == 0, resumed.output()
    report, _ = audit_run(Path(run.folder))
    assert report.ok, report.render()
    assert report.consumed == 16
