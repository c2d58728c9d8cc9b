"""A run whose folder this process holds: its signs of life, its warnings, and how its end is written down."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from cluster.config.recipe import RunConfig
from cluster.files import FINISHED
from cluster.run.failures import Fatal, classify
from cluster.run.folder import RunFolder
from cluster.run.interrupts import Interrupts
from cluster.run.looking import ForLooking
from cluster.run.memory import MemoryWatch
from cluster.run.progress import TrainingProgress
from cluster.run.pulse import Pulse, ending
from cluster.run.timeline import Timeline
from cluster.run.topology import Topology
from cluster.tracker_process import TAKEN_OVER
from learner import checkpoint


class OpenRun:
    """The run folder, locked, while entered; before anything is started.

    Attributes:
        counts: groups and pictures that were quarantined, by reason, in all parts of the run.
        finished: whether nothing is left but the report.
        warnings: that are told once there is something to tell them on.
        parts: of a run that has begun.
        exits: ends, in reverse, what was entered since; the folder's lock last.

    Raises:
        ConfigError (on entry): see `RunFolder`.
        Fatal (on exit): a file that the run rests on can't be written.
    """

    parts: Topology
    display: TrainingProgress

    def __init__(self, config: RunConfig, folder: Path, resume: bool) -> None:
        self.config, self.folder, self.resume = config, folder, resume
        self.counts: dict[str, int] = {}
        self.finished = False
        self.warnings: list[str] = []
        self.looking = ForLooking(self._warn)
        self.timeline = Timeline(folder, self.looking)
        self.exits = ExitStack()

    def __enter__(self) -> Self:
        disk = RunFolder(self.config, self.folder, self.resume, self.looking)
        self.disk = self.exits.enter_context(disk)  # first, so that its lock is given up last
        self.warnings += disk.warnings
        self.log, self.identity = disk.log, disk.identity
        self.counts = dict(Counter(reason for _, reason in disk.quarantined))
        self.began = time.monotonic()
        self.memory = self.exits.enter_context(MemoryWatch())
        self.interrupts = self.exits.enter_context(Interrupts())
        facts = {"run_id": self.run_id, "iterations": self.config.iterations}
        pulse = Pulse(self.folder, self.looking, self._mine, facts, lambda: self.interrupted)
        self.pulse = self.exits.enter_context(pulse)
        return self

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        began, cause = self.resume or hasattr(self, "parts") or not isinstance(error, Exception), error
        try:
            with self.exits:
                cause = self._end(error, began)
        except OSError as failure:
            cause = cause or failure
        if isinstance(cause, OSError) and cause.errno is not None:
            told = classify(cause)
            raise Fatal("the driver", told if began else told.before_anything_began()) from cause
        if isinstance(cause, Fatal) and not began:
            raise Fatal(cause.where, cause.failure.before_anything_began()) from cause

    def _end(self, error: BaseException | None, began: bool) -> BaseException | None:
        """Write down how the run has ended, and tell it; why it has, which may be that this can't be written."""
        cause, mine = error, False  # else the folder is another's
        overtaken = isinstance(error, Fatal) and error.failure.reason == "epoch"
        try:
            if mine := not overtaken and self.disk.guards():
                self.timeline.flush()
                if not began:
                    self.disk.forget()
                else:
                    if self.finished and error is None:
                        self.identity[FINISHED] = self.parts.version
                    self.disk.save(**self._totals(time.monotonic()))
        except OSError as failure:
            cause = error or failure  # a full disk must not hide why the run ends
        self.disk.trackers.how = TAKEN_OVER if overtaken else ending(cause)[0]
        if mine:
            self.pulse.end(cause)
        else:
            self.pulse.stop()
        return cause

    def _mine(self) -> bool:
        """Whether the folder is still this process's to write to: not removed, nor taken over."""
        epoch = self.parts.learning.epoch if hasattr(self, "parts") else None
        root = self.folder / "checkpoints"
        return self.disk.guards() and (epoch is None or checkpoint.current_epoch(root) <= epoch)

    def _warn(self, text: str) -> None:
        if hasattr(self, "display"):
            self.display.note(f"WARNING: {text}")
        else:
            self.warnings.append(text)

    def _totals(self, now: float) -> dict[str, Any]:
        """Of the whole run, its earlier parts included."""
        return {
            "seconds": self.identity["seconds"] + now - self.began,
            "peak_memory_mb": max(self.identity["peak_memory_mb"], self.memory.peak / 2**20),
            "dropped": self.counts,
            "not_written": dict(Counter(self.identity.get("not_written", {})) + self.looking.missing),
        }

    @property
    def run_id(self) -> str:
        return self.disk.run_id

    @property
    def interrupted(self) -> bool:
        return self.interrupts.requested is not None
