"""A run over the hosts, its driver on a, and when which of its iterations was done."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.hosts import ROOT, SECRET, Hosts
from benchmarks.faults.recipe import write_recipe
from benchmarks.faults.verdict import Moment

LOOK_S = 0.1
AUDIT_S = 120.0


class RunProblem(RuntimeError):
    """A run of a row doesn't come to where the row begins, or an answer stays away."""


class Run:
    """`restorl train` on host a, followed from its start.

    Attributes:
        moments: whenever the last iteration in metrics.jsonl had changed.
        statuses: of its driver's processes, oldest first; negative: the signal that ended it.
    """

    def __init__(self, hosts: Hosts, workplace: Path, name: str, store_url: str, password: str) -> None:
        self.hosts, self.name, self.folder = hosts, name, hosts.folder / name
        self.moments: list[Moment] = []
        self.statuses: list[int] = []
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = hosts.environment("a", **{SECRET: password})
        self._recipe = hosts.folder / f"{name}.yaml"
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        write_recipe(self._recipe, workplace, hosts.token, store_url, name)

    def __enter__(self) -> Run:
        self._start([str(self._recipe), "--run", str(self.folder)])
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join(5)

    def resume(self) -> None:
        """Go on from the last checkpoint, once the process before has ended."""
        self._start(["--resume", str(self.folder)])

    def kill(self) -> None:
        """kill -9 of the driver."""
        assert self.process is not None
        self.process.kill()

    @property
    def ended(self) -> int | None:
        """The status of the driver's process, None as long as it runs."""
        assert self.process is not None
        return self.process.poll()

    def wait(self, timeout_s: float) -> int:
        """The status of the driver's process.

        Raises:
            RunProblem: it hasn't ended in time.
        """
        assert self.process is not None
        try:
            self.statuses.append(self.process.wait(timeout_s))
        except subprocess.TimeoutExpired:
            raise RunProblem(f"run {self.name!r} has not ended within {timeout_s:.0f} s: {self.tail()}") from None
        return self.statuses[-1]

    def wait_for(self, iteration: int, timeout_s: float) -> None:
        """Until an iteration is done.

        Raises:
            RunProblem: the run has ended before, or it isn't in time.
        """
        self.wait_until(lambda: self.iteration >= iteration, f"iteration {iteration}", timeout_s)

    def wait_until(self, reached: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            if self.ended is not None:
                raise RunProblem(f"run {self.name!r} ended with status {self.ended} before {what}: {self.tail()}")
            if time.monotonic() > deadline:
                raise RunProblem(f"run {self.name!r} has no {what} after {timeout_s:.0f} s: {self.tail()}")
            time.sleep(LOOK_S)

    @property
    def iteration(self) -> int:
        """The last one that is done."""
        return self.moments[-1].iteration if self.moments else 0

    def train_rows(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        text = path.read_text(errors="replace") if path.exists() else ""
        return [row for line in text.splitlines() if '"kind": "train"' in line and (row := _parsed(line))]

    def tail(self) -> str:
        """The last line that the driver has printed."""
        log = self._log
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "(nothing)"

    def notes(self) -> list[str]:
        """The lines in which the driver told of a failure."""
        lines = self._log.read_text(errors="replace").splitlines()
        signs = ("starting again", "WARNING", "quarantined")
        return [line.strip() for line in lines if any(sign in line for sign in signs)]

    def audit(self) -> dict[str, Any]:
        """What `restorl audit RUN --json` says.

        Raises:
            RunProblem: nothing that can be read.
        """
        command = [sys.executable, "-m", "cluster.cli", "audit", str(self.folder), "--json"]
        done = self.hosts.network.run("a", command, self._environment, AUDIT_S, cwd=ROOT)
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            raise RunProblem(f"restorl audit gave no answer: {(done.stdout + done.stderr).strip()[-500:]}") from None

    @property
    def _log(self) -> Path:
        return self.hosts.folder / f"{self.name}.log"

    def _start(self, words: Sequence[str]) -> None:
        command = [sys.executable, "-m", "cluster.cli", "train", *words]
        self.process = self.hosts.network.start("a", command, self._log, self._environment, cwd=ROOT)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            rows = self.train_rows()
            iteration = int(rows[-1]["iteration"]) if rows else 0
            if iteration != self.iteration:
                self.moments.append(Moment(time.monotonic(), iteration))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(line))
    except ValueError:  # just being written
        return None
