"""From the stream to a training batch: fresh groups in, stale and unreadable ones dropped with a reason."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from trajectories.errors import SchemaError
from trajectories.schema import Trajectories
from trajectories.stream import Entry, TrajectoryStream


class BatchTimeout(TimeoutError):
    """The stream did not deliver a whole batch in time."""


@dataclass(frozen=True)
class SourceSettings:
    """How a batch is gathered.

    Attributes:
        groups_per_step: B, groups (images with K rollouts each) of one learner step.
        max_staleness: versions a group may lie behind the weights it is trained on; 0 is synchronous.
        timeout_s: how long to wait for a whole batch.
    """

    groups_per_step: int = 8
    max_staleness: int = 1
    timeout_s: float = 900.0

    def __post_init__(self) -> None:
        if self.groups_per_step < 1:
            raise ValueError(f"groups_per_step={self.groups_per_step}: at least 1")
        if self.max_staleness < 0:
            raise ValueError(f"max_staleness={self.max_staleness}: 0 (synchronous) or more")
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s={self.timeout_s}: must be positive")


@dataclass(frozen=True)
class Batch:
    """Groups ordered by id, so that a batch doesn't depend on who arrived first.

    Attributes:
        staleness: versions that each group lies behind.
        dropped: groups refused on the way, by reason.
        waited_s: seconds until the batch was whole.
    """

    groups: list[Trajectories]
    staleness: list[int]
    dropped: dict[str, int] = field(default_factory=dict)
    waited_s: float = 0.0


class BatchSource:
    """One consumer of the group. An entry is settled only when the step that used it is durable."""

    def __init__(self, stream: TrajectoryStream, consumer: str, settings: SourceSettings, fingerprint: str) -> None:
        self.stream, self.consumer, self.settings, self.fingerprint = stream, consumer, settings, fingerprint
        self.waiting: list[tuple[str, Trajectories]] = []  # entry id, record
        self.used: dict[str, int] = {}  # entry id -> step that trained on it, not yet durable

    def collect(self, version: int) -> Batch:
        """B groups not older than `max_staleness` behind `version`.

        Raises:
            BatchTimeout: no whole batch within `timeout_s`; what was read stays for the next call.
        """
        began, dropped = time.monotonic(), Counter[str]()
        while len(self.waiting) < self.settings.groups_per_step:
            left = self.settings.timeout_s - (time.monotonic() - began)
            if left <= 0:
                raise BatchTimeout(
                    f"{len(self.waiting)} of {self.settings.groups_per_step} groups came within "
                    f"{self.settings.timeout_s:g} s; look at the rollout actors and the reward service"
                )
            missing = self.settings.groups_per_step - len(self.waiting)
            for entry in self.stream.read(self.consumer, missing, block_ms=int(min(left, 1.0) * 1000)):
                reason = self._refusal(entry, version)
                record = self.stream.fetch([entry.group_id])[0] if reason is None else None
                if isinstance(record, SchemaError):
                    reason = "schema"
                if isinstance(record, Trajectories):
                    self.waiting.append((entry.entry_id, record))
                else:
                    self.stream.settle([entry.entry_id], f"dropped:{reason}", token=f"dropped:{reason}")
                    dropped[str(reason)] += 1
        taken, self.waiting = self.waiting, []
        self.used |= {entry_id: version + 1 for entry_id, _ in taken}
        groups = sorted((record for _, record in taken), key=lambda record: record.meta.group_id)
        staleness = [max(0, version - group.meta.weights_version) for group in groups]
        return Batch(groups, staleness, dict(dropped), time.monotonic() - began)

    def settle(self, used: dict[str, int] | None = None) -> None:
        """Acknowledge what was trained on; call it after the checkpoint that holds the steps is on disk.

        `used` is what a checkpoint recorded: a learner that resumes repeats that settlement, which has no effect
        where it was done before.
        """
        by_step: dict[int, list[str]] = {}
        for entry_id, step in (self.used if used is None else used).items():
            by_step.setdefault(step, []).append(entry_id)
        for step, entries in sorted(by_step.items()):
            self.stream.settle(entries, f"consumed:step={step}", token=f"step={step}")
        if used is None:
            self.used = {}

    def _refusal(self, entry: Entry, version: int) -> str | None:
        summary = entry.summary
        if isinstance(summary, SchemaError):
            return "schema"
        if summary.meta.scheduler_fingerprint != self.fingerprint:
            return "fingerprint"
        if version - summary.meta.weights_version > self.settings.max_staleness:
            return "stale"
        return None
