"""How a command ends its process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys, threading, time
from cluster.cli.leaving import leaving
class Module:
    def __del__(self):
        print("taken apart")
kept = Module()
atexit.register(print, "handler")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
with leaving():
    print("command")
    {end}
"""


def run(end: str, **options: int) -> tuple[int, str, str]:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)], capture_output=True, text=True, timeout=30, **options
    )
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("end", "status", "told"),
    [("pass", 0, ""), ("sys.exit()", 0, ""), ("sys.exit(143)", 143, ""), ("sys.exit('no')", 1, "no\n")],
)
def test_threads_and_handlers_run_output_is_flushed_and_modules_stay(end: str, status: int, told: str) -> None:
    assert run(end) == (status, "command\nthread\nhandler\n", told)


def test_an_error_that_nobody_expected_ends_as_ever() -> None:
    status, _, told = run("1 / 0")
    assert status == 1 and "ZeroDivisionError" in told


def test_output_that_nobody_takes_any_more_is_no_success() -> None:
    command = f'"{sys.executable}" -c "$PROGRAM" | true; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(
        ["bash", "-c", command],
        env={
            "PROGRAM": PROGRAM.format(end="time.sleep(0.5); sys.stdout.write('x' * 9)"),
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        timeout=30,
    )
    assert ended.returncode == 120
