"""From the stream to a training batch: summaries of fresh groups; what can't be used is dropped with its reason.

Only summaries travel here, a few kilobytes a group; each rank fetches the latents of its own share.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from learner.batch import Refused
from trajectories.errors import SchemaError
from trajectories.schema import Summary
from trajectories.stream import Entry, TrajectoryStream

READ_S = 0.5  # longest wait for one answer of the stream, and so for a request to stop


class BatchTimeout(TimeoutError):
    """The stream did not deliver a whole batch in time."""


class Stopped(Exception):
    """Nobody waits for the batch any more."""


@dataclass(frozen=True)
class SourceSettings:
    """How a batch is gathered.

    Attributes:
        groups_per_step: B, groups (images with K rollouts each) of one learner step.
        max_staleness: versions a group may lie behind the weights it is trained on; 0 is synchronous.
        timeout_s: how long an idle learner waits for a whole batch.
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
        entries: the stream's entry id of each group.
        staleness: versions that each group lies behind.
    """

    groups: list[Summary]
    entries: list[str]
    staleness: list[int]


@dataclass
class _Counts:
    """What was refused since it was asked for the last time."""

    dropped: Counter[str] = field(default_factory=Counter)
    refused: list[Refused] = field(default_factory=list)


class BatchSource:
    """The reader of a run's stream in one epoch. An entry is settled only when the step that used it is durable.

    `collect` and `refuse` are the reader's, one call at a time; `use` and `settle` may run in other threads.

    Args:
        reading, settling: connections to the stream of the run, one for each side.
        reward_version: the only one whose rewards are trained on.
    """

    def __init__(
        self,
        reading: TrajectoryStream,
        settling: TrajectoryStream,
        settings: SourceSettings,
        fingerprint: str,
        reward_version: str,
        epoch: int,
    ) -> None:
        self.reading, self.settling, self.settings = reading, settling, settings
        self.fingerprint, self.reward_version, self.epoch = fingerprint, reward_version, epoch
        self.consumer = f"learner-{epoch}"
        self.waiting: dict[str, Summary] = {}  # by entry id, in the order of publication
        self.used: dict[str, int] = {}  # entry id -> step that trained on it, not yet durable
        self._used_groups: dict[str, str] = {}  # entry id -> group id, of the same
        self._lock = threading.Lock()
        self._counts = _Counts()
        self._reclaimed = False
        self._in_hand = 0  # groups of the batch that was collected last

    def lack(self) -> str:
        """What is missing of a batch, for whom `timeout_s` is over."""
        came, wanted = len(self.waiting) + self._in_hand, self.settings.groups_per_step
        limit = f"within source.timeout_s={self.settings.timeout_s:g} s"
        if self._in_hand:
            return f"{came} groups came, and the learner's ranks did not read and check them {limit}"
        return f"{came} of {wanted} groups came {limit}"

    def collect(self, version: int, stop: threading.Event) -> Batch:
        """B groups not older than `max_staleness` behind `version`; waits until they are there.

        Raises:
            Stopped: `stop` was set first; what was read stays for the next call.
            StaleEpoch: the run goes on in another process.
        """
        wanted, self._in_hand = self.settings.groups_per_step, 0
        for entry_id, summary in list(self.waiting.items()):  # some may have grown too old meanwhile
            if (refused := self._refusal(summary, version)) is not None:
                self._drop(entry_id, summary.meta.group_id, *refused)
        while len(self.waiting) < wanted:
            if stop.is_set():
                raise Stopped
            for entry in self._next(wanted - len(self.waiting)):
                if isinstance(entry.summary, SchemaError):
                    self._drop(entry.entry_id, entry.group_id, "schema", str(entry.summary)[:500])
                elif (refused := self._refusal(entry.summary, version)) is not None:
                    self._drop(entry.entry_id, entry.group_id, *refused)
                else:
                    self.waiting[entry.entry_id] = entry.summary
        chosen = sorted(list(self.waiting.items())[:wanted], key=lambda pair: pair[1].meta.group_id)
        for entry_id, _ in chosen:
            del self.waiting[entry_id]
        self._in_hand = len(chosen)
        groups = [summary for _, summary in chosen]
        return Batch(groups, [e for e, _ in chosen], [max(0, version - g.meta.weights_version) for g in groups])

    def refuse(self, batch: Batch, refused: Iterable[Refused]) -> None:
        """Quarantine groups of a batch that can't be trained on; the others come first in the next `collect`."""
        left = {g.meta.group_id: (e, g) for g, e in zip(batch.groups, batch.entries, strict=True)}
        for one in refused:
            if one.group_id in left:
                self._drop(left.pop(one.group_id)[0], one.group_id, one.reason, one.detail)
        self._in_hand, self.waiting = 0, dict(left.values()) | self.waiting

    def use(self, batch: Batch, step: int) -> None:
        """A step has trained on the batch."""
        with self._lock:
            for entry_id, group in zip(batch.entries, batch.groups, strict=True):
                self.used[entry_id] = step
                self._used_groups[entry_id] = group.meta.group_id

    def not_yet_durable(self) -> dict[str, int]:
        """What a checkpoint of this instant must record: entry id -> step."""
        with self._lock:
            return dict(self.used)

    def used_groups(self) -> set[str]:
        """Ids of groups that finished steps have used and that are not settled yet."""
        with self._lock:
            return set(self._used_groups.values())

    def settle(self, used: dict[str, int]) -> None:
        """Acknowledge what a durable checkpoint rests on, as it recorded it.

        A learner that resumes repeats that settlement, which has no effect where it was done before.

        Raises:
            StaleEpoch: the run goes on in another process, whose business it is.
        """
        by_step: dict[int, list[str]] = {}
        for entry_id, step in used.items():
            by_step.setdefault(step, []).append(entry_id)
        for step, entries in sorted(by_step.items()):
            self.settling.settle(entries, f"consumed:step={step}", token=f"step={step}", epoch=self.epoch)
        self.reading.forget_settled(used)
        with self._lock:
            for entry_id in used:
                self.used.pop(entry_id, None)
                self._used_groups.pop(entry_id, None)

    def take_counts(self) -> tuple[dict[str, int], list[Refused]]:
        """Groups dropped by reason, and those of them that were quarantined, since the last call."""
        with self._lock:
            counts, self._counts = self._counts, _Counts()
        return dict(counts.dropped), counts.refused

    def _next(self, count: int) -> Sequence[Entry]:
        """What earlier epochs' readers took and did not settle comes first, then new entries."""
        if not self._reclaimed:
            taken = self.reading.reclaim_others(self.consumer, self.epoch)
            self._reclaimed = True
            if taken:
                return taken
        return self.reading.read(self.consumer, count, block_ms=int(READ_S * 1000), epoch=self.epoch)

    def _drop(self, entry_id: str, group_id: str, reason: str, detail: str) -> None:
        token = f"dropped:{reason}"
        self.reading.settle([entry_id], token, token=token, epoch=self.epoch)
        self.waiting.pop(entry_id, None)
        with self._lock:
            self._counts.dropped[reason] += 1
            if reason not in ("stale", "reward_version"):
                self._counts.refused.append(Refused(group_id, reason, detail))

    def _refusal(self, summary: Summary, version: int) -> tuple[str, str] | None:
        """The reason, a word, and the detail."""
        meta = summary.meta
        if meta.scheduler_fingerprint != self.fingerprint:
            found = f"rolled out with schedule {meta.scheduler_fingerprint}, the learner replays {self.fingerprint}"
            return "fingerprint", found
        if meta.reward_version != self.reward_version:
            return "reward_version", f"scored by {meta.reward_version}, the run by {self.reward_version}"
        if version - meta.weights_version > self.settings.max_staleness:
            return "stale", f"of weights {meta.weights_version}, the learner has {version}"
        return None
