"""The folder of a run, which one process at a time may write to: configuration, identity, metrics, quarantine."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from actors.work import Quarantined
from cluster.config.configure import ConfigError, save_config
from cluster.config.recipe import TENSORBOARD, RunConfig
from cluster.config.resume import keep_config
from cluster.files import FINISHED, IDENTITY_FILE, QUARANTINE_FILE, JsonLines, read_json_lines, write_text
from cluster.report.records import FILE_NAME, MetricsLog, read_metrics
from cluster.run.failures import RESUME, Failure, Fatal, Kind, classify, file_remedy
from cluster.run.folder_lock import MOUNTS, locked, only_here
from cluster.run.looking import ForLooking
from cluster.trackers import trackers_of
from learner import checkpoint

FIGURES = "evaluation"  # the folder of what was evaluated, which only a run that has begun has


def has_begun(path: Path) -> bool:
    """Whether the folder holds a run, which can go on from its last checkpoint, or without one from what it has."""
    return (path / IDENTITY_FILE).exists()


def finished_after(path: Path) -> int | None:
    """Iterations after which the run in that folder was complete; None if it is not.

    Raises:
        ConfigError: its run.json is damaged.
    """
    found = read_identity(path).get(FINISHED)
    return found if isinstance(found, int) else None


def read_identity(folder: Path) -> dict[str, Any]:
    """What run.json says.

    Raises:
        ConfigError: it is damaged, or can't be read.
    """
    path = folder / IDENTITY_FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = {"run_id": str(found["run_id"]), "seconds": float(found["seconds"])}
        return found | known | {"peak_memory_mb": float(found.get("peak_memory_mb", 0.0))}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError.of(
            f"{path} is damaged ({type(error).__name__}: {error}); put it back from a copy, or start another run"
        ) from error


def new_run_id(name: str) -> str:
    """An id that no other run has, of characters that stores, trackers and Ray take: NAME-1a2b3c4d."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name) + f"-{uuid.uuid4().hex[:8]}"


class RunFolder:
    """What a run keeps on disk. Nothing is written before its lock is held, and nothing after it is given up.

    Attributes:
        identity: what run.json says of the run: run_id, versions, and what it has cost in earlier parts.
        log: its metrics.
        quarantined: (what, reason) of all that is in quarantine.jsonl.
        warnings: about what a resumed run changes, and about what its lock doesn't keep out.

    Raises (on entry):
        ConfigError: the folder holds a run already and `resume` is False, or holds none and it is True; another
            process uses it; it can't be written to; a file of it is damaged.
    """

    def __init__(self, config: RunConfig, path: Path, resume: bool, looking: ForLooking) -> None:
        self.config, self.path, self.resume, self.looking = config, path, resume, looking
        self.warnings: list[str] = []
        self.quarantined: set[tuple[str, str]] = set()
        self._quarantine: JsonLines | None = None
        self._exits = ExitStack()

    def __enter__(self) -> RunFolder:
        self._require_fitting()  # before a lock is left in a folder that is no run
        try:
            self._lock = self._exits.enter_context(locked(self.path))
            self._require_fitting()  # another process may have begun it, or ended its start, meanwhile
            if self.resume:
                self._resume()
            else:
                self._begin()
            self._warn_of_local_locks()
            self.trackers = self._exits.enter_context(trackers_of(self.config, self.path, self.run_id, self.looking))
            tensorboard = TENSORBOARD in self.config.tracking
            log = MetricsLog(self.path, tensorboard, self._lost_tensorboard, self.trackers.record)
            self.log = self._exits.enter_context(log)
        except OSError as error:
            if not self.resume:
                with suppress(OSError):
                    self.forget()
            self._exits.close()
            remedy = file_remedy(error) or "see that it can be read and written"
            raise ConfigError.of(f"{error}; {remedy}, then try again") from error
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.__exit__(kind, error, trace)

    @property
    def run_id(self) -> str:
        return str(self.identity["run_id"])

    def save(self, **more: Any) -> None:
        """Write run.json: the identity, and `more`.

        Raises:
            OSError: it can't be written; what was there stays.
        """
        write_text(self.path / IDENTITY_FILE, json.dumps(self.identity | more, indent=2) + "\n")

    def forget(self) -> None:
        """Leave no run behind: nothing has begun, and the same command may try again."""
        (self.path / IDENTITY_FILE).unlink(missing_ok=True)

    def quarantine(self, found: Iterable[Quarantined]) -> list[Quarantined]:
        """Write down what isn't yet; returns that. A group that is met again after a resume counts once.

        Raises:
            OSError: it can't be written.
        """
        new = {key: one for one in found if (key := (one.what, one.reason)) not in self.quarantined}
        if new:
            if self._quarantine is None:
                self._quarantine = self._exits.enter_context(JsonLines(self.path / QUARANTINE_FILE))
            rows = ({"what": one.what, "reason": one.reason, "detail": one.detail} for one in new.values())
            self._quarantine.append(*rows)
            self.quarantined |= new.keys()
        return list(new.values())

    def require(self, epoch: int) -> None:
        """Before anything is written that a successor may have written, too.

        Args:
            epoch: of this process's learner.

        Raises:
            Fatal: the folder isn't the one any more that was locked, or a later epoch writes there.
        """
        if not self.guards():
            detail = f"{self.path} was removed, or another folder put in its place, while the run wrote to it"
            raise Fatal("the run folder", Failure(Kind.FATAL, "folder", detail, f"put it back, then {RESUME}"))
        try:
            checkpoint.require_epoch(self.path / "checkpoints", epoch)
        except checkpoint.CheckpointOvertaken as error:
            raise Fatal("the driver", classify(error)) from error

    def guards(self) -> bool:
        """Whether it still is the folder that was locked."""
        return self._lock.guards()

    def _require_fitting(self) -> None:
        if has_begun(self.path) != self.resume:
            raise ConfigError.of(
                f"{self.path} already holds a run; resume it with --resume {self.path}, or give another folder"
                if not self.resume
                else f"{self.path} holds no run to resume"
            )
        if not self.resume and (self.path / FIGURES).exists():
            raise ConfigError.of(f"{self.path} holds figures of another run; give another folder")

    def _begin(self) -> None:
        save_config(self.config, self.path / "config.yaml")
        self.identity: dict[str, Any] = {"run_id": new_run_id(self.config.name), "seconds": 0.0}
        self.identity |= {"peak_memory_mb": 0.0, FINISHED: None}
        self.identity["versions"] = {p: version(p) for p in ("torch", "ray", "diffusers", "deepspeed", "peft")}
        self.save()

    def _resume(self) -> None:
        self.identity = {FINISHED: None} | read_identity(self.path)  # which of an earlier version lacks it
        try:
            if (self.path / FILE_NAME).is_file():
                read_metrics(self.path)  # before anything starts: a line that can't be read would end the run then
            if (self.path / QUARANTINE_FILE).is_file():
                rows = read_json_lines(self.path / QUARANTINE_FILE, ("what", "reason"))
                self.quarantined = {(str(row["what"]), str(row["reason"])) for row in rows}
        except ValueError as error:
            raise ConfigError.of(str(error)) from error
        self.warnings = keep_config(self.path, self.config)

    def _warn_of_local_locks(self) -> None:
        with suppress(FileNotFoundError):  # only Linux has that file
            if option := only_here(self.path, MOUNTS.read_text(encoding="utf-8", errors="replace")):
                self.warnings.append(
                    f"{self.path} is mounted with {option}: its lock keeps out processes of this machine only, so "
                    "never start or resume this run on two machines at once"
                )

    def _lost_tensorboard(self, error: Exception) -> None:
        self.looking.lack("tensorboard", error)
