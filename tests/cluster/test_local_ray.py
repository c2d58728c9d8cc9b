"""A local Ray under signals and failures: the exit status is right and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from cluster.local_ray import LocalRay
from cluster.processes import marked

# A driver as `restorl train` is one, with its three phases. It says where it is.
DRIVER = """
import sys
from cluster.cli.errors import guarded
from cluster.cli.leaving import leaving
from cluster.jobs import ClusterSettings, connect
from cluster.run.interrupts import Interrupts, Stopped

@guarded
def main():
    with Interrupts() as interrupts:
        print("connecting", flush=True)
        with connect(ClusterSettings(num_cpus=1, dashboard={dashboard}, object_store_mb=80)) as connection:
            connection.open_dashboard(print)
            import ray
            ref = ray.remote(num_cpus=0.1)(sleep).remote({sleep})
            print("waiting", flush=True)
            ray.get(ref)
            interrupts.defer()
            print("leaving", flush=True)
    print("left", flush=True)
    if interrupts.requested:
        raise Stopped("go on", interrupts.requested)

def sleep(seconds):
    import time
    time.sleep(seconds)

with leaving():
    main()
"""


def lines_until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise AssertionError(f"ended before {word}")


def of_driver(name: str) -> list[psutil.Process]:
    """Every living process with the test's variable in its environment, marked by ours or not."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("RESTORL_TEST") == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


# Ray's core is up, and its handlers are the ones in force; what they set off would come while everything ends.
HANDLERS = """
import time
from ray._private import worker
from cluster import local_ray
def slowly(*arguments, end=local_ray.end, **options):
    time.sleep(4)
    end(*arguments, **options)
local_ray.end = slowly
connect_driver = worker.connect
def connecting(*arguments, **options):
    connect_driver(*arguments, **options)
    print("its handlers", flush=True)
    time.sleep(5)
worker.connect = connecting
"""


def end_by(
    number: signal.Signals,
    phase: str,
    after_s: float = 0.0,
    sleep: float = 600,
    dashboard: bool = False,
    setup: str = "",
):
    """(exit status, seconds to it, processes left 5 s later) of a driver that gets the signal in that phase."""
    name = uuid.uuid4().hex
    driver = subprocess.Popen(
        [sys.executable, "-c", setup + DRIVER.format(sleep=sleep, dashboard=dashboard)],
        env={**os.environ, "RESTORL_TEST": name},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines_until(driver, phase)
        time.sleep(after_s)
        began = time.monotonic()
        driver.send_signal(number)
        _, said = driver.communicate(timeout=90)
        took = time.monotonic() - began
        while (left := of_driver(name)) and time.monotonic() - began < took + 5:
            time.sleep(0.1)
        return driver.returncode, took, left, said
    finally:
        for process in of_driver(name):
            process.kill()


@pytest.mark.parametrize("after_s", [3.0, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.3, 6.0))])
def test_sigterm_while_ray_starts_ends_with_143_and_nothing_left(after_s: float) -> None:
    status, took, left, said = end_by(signal.SIGTERM, "connecting", after_s)
    assert (status, left) == (143, []), said
    assert took < 40


@pytest.mark.slow
def test_sigterm_between_ray_s_own_handlers_and_their_removal_ends_with_143_and_nothing_left() -> None:
    status, took, left, said = end_by(signal.SIGTERM, "its handlers", setup=HANDLERS)
    assert (status, left) == (143, []), said
    assert took < 40


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_the_driver_waits_for_an_actor_ends_with_its_status_and_nothing_left(
    number: signal.Signals, status: int
) -> None:
    found, took, left, said = end_by(number, "waiting", after_s=2, dashboard=number == signal.SIGTERM)
    assert (found, left) == (status, []), said
    assert took < 30


@pytest.mark.slow
def test_a_first_signal_during_the_shutdown_lets_it_finish() -> None:
    status, took, left, said = end_by(signal.SIGTERM, "leaving", sleep=0.1)
    assert (status, left) == (143, []), said
    assert "go on" in said and took < 30


def test_a_killed_driver_leaves_no_process() -> None:
    status, _, left, _ = end_by(signal.SIGKILL, "waiting", after_s=2, dashboard=True)
    assert (status, left) == (-signal.SIGKILL, [])


def test_a_failed_attempt_is_ended_to_the_last_process_before_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    calls: list[int] = []
    monkeypatch.setattr("cluster.local_ray.FIRST_PAUSE_S", 0.01)
    local = LocalRay()

    def init(address: str, **options: object) -> str:
        calls.append(len(marked(local.mark)))
        if len(calls) < 3:
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            raise RuntimeError("The current node timed out during startup. This could happen because ...")
        return "context"

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    try:
        assert local.start({}) == "context"
        assert calls == [0, 0, 0]
    finally:
        local.stop()


@pytest.mark.parametrize("error", [RuntimeError("no space left"), KeyboardInterrupt()])
def test_what_is_no_time_out_is_told_at_once_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    import ray

    calls: list[str] = []
    local = LocalRay()

    def init(address: str, **options: object) -> str:
        calls.append(address)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    try:
        with pytest.raises(type(error)):
            local.start({})
        assert calls == ["local"] and not marked(local.mark)
    finally:
        local.stop()
