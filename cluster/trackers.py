"""Experiment trackers by name: `tracking: [wandb]` mirrors the metrics of a run there. metrics.jsonl stays the truth.

A tracker's library runs in a process of its own (`cluster.tracker_process`), which a thread feeds through a bounded
queue: a library that fails, hangs, prints, or waits for its server as it ends costs the run nothing. Where it reports
to, and whether at all (offline), its own environment variables say.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.config.configure import plain
from cluster.config.recipe import TENSORBOARD, RunConfig
from cluster.report.live import FAILED, FINISHED, STOPPED
from cluster.run.looking import ForLooking
from trajectories.settings import StoreAddress

LIBRARIES = {"wandb": "wandb", "mlflow": "mlflow"}  # name -> module
MOST_WAITING = 1000  # records; more are dropped, and told
END_S = 30.0  # what the end of a run waits for all trackers together
LAST_WORDS = 300  # characters of what a tracker has said last


def lacking(names: Sequence[str]) -> list[str]:
    """Of `names`, those whose library isn't installed."""
    return [name for name in names if name in LIBRARIES and not _is_installed(LIBRARIES[name])]


def _is_installed(module: str) -> bool:
    """A mere folder of that name, as wandb leaves one where it is used, is no library."""
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None


def shareable(config: RunConfig) -> dict[str, Any]:
    """A configuration as JSON has it, without the password that a store's address may hold."""
    found: dict[str, Any] = plain(config)
    if not config.store.is_embedded:
        found["store"]["url"] = StoreAddress.from_url(config.store.url).url
    return found


class Trackers:
    """All trackers of a run; made and used by one thread.

    Args:
        names: as `tracking` of a recipe; tensorboard, which `MetricsLog` writes itself, is not looked after here.
        run: what a tracker is told of the run: run_id, name, folder, and config as JSON has it, without secrets.
        lost: gets the name of a tracker and why figures are missing there; from any thread, once for each.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: Mapping[str, Any],
        lost: Callable[[str, Exception], None],
        end_s: float = END_S,
    ) -> None:
        self.end_s = end_s
        self.how = ""  # the run ends, as `Tracker.end` has it; by what ends the block, if nobody has set it
        self._feeds = [Feed(name, run, lost) for name in dict.fromkeys(names) if name != TENSORBOARD]

    def record(self, row: Mapping[str, Any]) -> None:
        """Mirror a record of the metrics; returns at once."""
        for feed in self._feeds:
            feed.put(row)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = FINISHED if error is None else STOPPED if isinstance(error, KeyboardInterrupt) else FAILED
        for feed in self._feeds:
            feed.end(self.how or ended)
        deadline = time.monotonic() + self.end_s
        for feed in self._feeds:
            feed.join(deadline)


def trackers_of(config: RunConfig, folder: Path, run_id: str, looking: ForLooking) -> Trackers:
    """Those of a run; what one lacks is told as of other files that are only looked at."""
    run = {"run_id": run_id, "name": config.name, "folder": str(folder.resolve()), "config": shareable(config)}
    return Trackers(config.tracking, run, looking.lack)


class Feed:
    """The thread and the process of one tracker."""

    def __init__(self, name: str, run: Mapping[str, Any], lost: Callable[[str, Exception], None]) -> None:
        self.name, self.run = name, dict(run)
        self._lost = lost
        self._told = False
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._log = Path(str(run["folder"])) / f"tracking-{name}.log"

    def put(self, row: Mapping[str, Any]) -> None:
        """One record for the tracker, unless too many wait for it already; the first starts it."""
        if self._thread.ident is None:  # a start that fails leaves no run there
            self._thread.start()
        try:
            self._queue.put_nowait(row)
        except queue.Full:
            self._tell(f"{MOST_WAITING} records wait for it, and what comes meanwhile is dropped")

    def end(self, how: str) -> None:
        """No more will come; what waits is still handed over."""
        self._ending.set()
        with suppress(queue.Full):
            self._queue.put_nowait({"kind": "end", "how": how})

    def join(self, deadline: float) -> None:
        """Wait for the tracker's end until `deadline`, on the monotonic clock; then it is killed."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._tell("it did not end in time, and what it had not yet passed on is lost there")
            if self._process is not None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)  # and what it has started
            self._thread.join(1.0)

    def _work(self) -> None:
        try:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "cluster.tracker_process", self.name],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for the driver
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            self._feed(self._process)
            if (status := self._process.wait()) != 0 or not self._ending.is_set():
                raise RuntimeError(f"it ended with status {status}: {self._last_words()}")
        except Exception as error:  # whatever a library, a disk or a pipe brings: it is told, and costs the run nothing
            self._tell(error)
            self._drain()

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """Hand all over, until the end; a tracker that has ended before that has its reason in its log."""
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as to:
            self._write(to, {"kind": "begin", **self.run})
            while process.poll() is None:
                try:
                    row = self._queue.get(timeout=0.5)
                except queue.Empty:
                    if self._ending.is_set():  # its place in the queue was taken
                        return
                    continue
                self._write(to, row or {})
                if row and row.get("kind") == "end":
                    return

    @staticmethod
    def _write(to: Any, row: Mapping[str, Any]) -> None:
        to.write((json.dumps(row, default=str) + "\n").encode())
        to.flush()

    def _drain(self) -> None:
        """Nobody reads any more: what comes goes, until the end."""
        while not self._ending.is_set():
            with suppress(queue.Empty):
                self._queue.get(timeout=0.5)

    def _last_words(self) -> str:
        try:
            said = self._log.read_text(errors="replace").strip().splitlines()
        except OSError:
            said = []
        return f"{said[-1].strip()[:LAST_WORDS]} (all is in {self._log})" if said else f"look at {self._log}"

    def _tell(self, why: str | Exception) -> None:
        if not self._told:
            self._told = True
            self._lost(f"tracking by {self.name}", RuntimeError(why) if isinstance(why, str) else why)
