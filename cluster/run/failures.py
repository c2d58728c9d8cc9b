"""The one policy of failures: what an error means for the run, and how often something may be tried again.

Three kinds (docs/failures.md is the table for people):

* poison: this group, picture or record can't be used; it is quarantined with its reason, counted, and the run goes on.
* transient: a process, a node or a connection died; the work is given out again after a pause, a bounded number of
  times without progress.
* fatal: configuration, data as a whole, code; the run ends with the cause and what to do.

Errors are known by the names of their classes: the rooms share no base class, and what happened in another process
arrives as a copy whose class derives from the original's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum


class Kind(Enum):
    POISON = "poison"
    TRANSIENT = "transient"
    FATAL = "fatal"


@dataclass(frozen=True)
class Failure:
    """An error as the policy sees it.

    Attributes:
        reason: a word for counters and the ledger.
        detail: the error's own first lines.
        remedy: what to do, for fatal ones and those that were tried too often.
        source: the error itself, whose stack trace `--debug` shows.
    """

    kind: Kind
    reason: str
    detail: str
    remedy: str = ""
    source: BaseException | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.detail}; {self.remedy}" if self.remedy else self.detail

    def before_anything_began(self) -> Failure:
        """The same of a start, which leaves nothing that could be resumed."""
        return replace(self, remedy=self.remedy.replace(RESUME, "give the same command again"))


P, T, F = Kind.POISON, Kind.TRANSIENT, Kind.FATAL
RESUME = "go on with --resume"
_MEMORY = f"lower rollout.images_per_batch, rollout.decode_batch or learner.micro_batch, then {RESUME}"
_LOG = "look at its log, in the folder that was told at the start, or in the Ray dashboard"
_RESUME = f"put it right, then {RESUME}"
SLOW = f"raise stall_timeout_s (start_timeout_s, if it was at its start) if its work may take so long; else {_LOG}"
_LOST = f"give the server its data back, or store.url the right server, then {RESUME}"
_TAKEN = f"leave the run to that process, or stop it and {RESUME}"
_OBJECT = "look at the nodes in the Ray dashboard; was one lost, or its object store full (cluster.object_store_mb)?"

_PLACE = (
    "add nodes, lower actors.count (actors that wait for a place take what a rank leaves), or give the ranks nodes of "
    f"their own by a label (ranks.resources), then {RESUME}"
)

# Number of a system's error about a file -> what to do about it.
FILE_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or have the quota raised",
    errno.EROFS: "have that file system mounted writable (it may have met an error of its disk)",
    errno.EACCES: "let this user read and write there",
    errno.EPERM: "let this user read and write there",
    errno.EIO: "look at that disk, or at the connection to its file server",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files of this machine",
}
_GONE = dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), "was it moved, removed or unmounted? put it back")

# Class name -> (kind, reason, remedy). The nearest class of the error's own line of descent decides.
POLICY: dict[str, tuple[Kind, str, str]] = {
    # a picture, a group, a record
    "ImageError": (P, "picture", "replace or remove the file"),
    "BatchError": (P, "batch", "roll out and learn with one release and one configuration"),
    "SchemaError": (P, "schema", "run actors and learner from one release"),
    "InvalidReward": (P, "reward:invalid", "look at the picture, or choose another scorer"),
    "InvalidBlock": (P, "reward:block", "look at the size of the crop: the scorer refuses it"),
    "ScorerFailed": (P, "reward:scorer", "look at the scorer's error"),
    # a process, a node, a connection
    "RewardTimeout": (T, "reward:timeout", "raise reward.deadline_s or reward.replicas"),
    "RewardUnavailable": (T, "reward:unavailable", f"is the reward service up? {_LOG}"),
    "StoreUnreachable": (T, "store", "is the store running and reachable from every node?"),
    "StoreUnready": (T, "store", _RESUME),
    "BackPressureTimeout": (T, "store:full", "raise store.max_entries or store.max_bytes, or look at the learner"),
    "StaleEpoch": (T, "epoch", _TAKEN),
    "LearnerDied": (T, "learner", f"was it out of memory, or its node lost? {_LOG}"),
    "LearnerStuck": (T, "learner", SLOW),
    "LearnerUnplaced": (T, "place", _PLACE),
    "BatchTimeout": (F, "batch", "look at the rollout actors and the reward service, or raise source.timeout_s"),
    "RayActorError": (T, "process", _LOG),
    "ActorUnavailableError": (T, "process", _LOG),
    "WorkerCrashedError": (T, "process", _LOG),
    "NodeDiedError": (T, "node", "look at the nodes in the Ray dashboard"),
    "OutOfMemoryError": (F, "memory", _MEMORY),  # torch's, of a GPU; Ray's own is of a node, see below
    "ObjectLostError": (T, "object", _OBJECT),
    "OwnerDiedError": (T, "object", _OBJECT),
    "ObjectFetchTimedOutError": (T, "object", _OBJECT),
    "GetTimeoutError": (T, "object", _OBJECT),
    "ReferenceCountingAssertionError": (T, "object", _OBJECT),
    "ObjectStoreFullError": (F, "memory", "raise cluster.object_store_mb"),
    # configuration, data as a whole, code
    "MemoryError": (F, "memory", _MEMORY),
    "FloatingPointError": (F, "diverged", "resume with a lower optimiser.lr or objective.rl_coef"),
    "ScorerBroken": (F, "reward:broken", f"put the scorer right: its log is in the Ray dashboard; then {RESUME}"),
    "WrongScorer": (F, "reward:version", "let each run have a reward service of its own"),
    "StoreAuthError": (F, "store", _RESUME),
    "StoreFull": (F, "store", _RESUME),
    "StoreLost": (F, "store", _LOST),
    "RecordTooLarge": (F, "store", _RESUME),
    "CheckpointError": (F, "checkpoint", _RESUME),
    "CheckpointOvertaken": (F, "epoch", _TAKEN),
    "TimeoutError": (F, "timeout", f"{SLOW}; then {RESUME}"),
    "OSError": (F, "file", _RESUME),
}
_GPU_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "NCCL out of memory")


def classify(error: BaseException) -> Failure:
    """What an error, also one that Ray brought from another process, means for the run. Unknown ones are fatal."""
    for source in _lineage(error):
        if any(sign in str(source) for sign in _GPU_MEMORY):
            return Failure(F, "memory", _first_lines(source), _MEMORY, error)
        for cls in type(source).__mro__:
            if cls.__name__ == "OutOfMemoryError" and cls.__module__.startswith("ray"):
                # Ray ended a worker because its node ran short: another try may find room.
                return Failure(
                    T, "memory", _first_lines(source), "give the node more memory, or it fewer processes", error
                )
            if cls.__name__ in POLICY:
                kind, reason, remedy = POLICY[cls.__name__]
                if cls is OSError and (known := file_remedy(source)):
                    remedy = f"{known}, then {RESUME}"
                return Failure(kind, reason, _first_lines(source), remedy, error)
    return Failure(F, "error", f"{type(error).__name__}: {_first_lines(error)}", "", error)


def file_remedy(error: BaseException) -> str:
    """What to do about a system's error about a file of the run; empty if that isn't known."""
    number = getattr(error, "errno", None)
    return (FILE_REMEDIES | _GONE).get(number, "") if isinstance(number, int) else ""


class Fatal(RuntimeError):
    """The run can't go on; the message holds where it happened, the cause and what to do. It can be resumed."""

    def __init__(self, where: str, failure: Failure) -> None:
        super().__init__(f"{where}: {failure}")
        self.where, self.failure = where, failure


class Patience:
    """Bounds repeated failures of one thing (a role, a work item): so many in a row without any progress.

    Args:
        limit: failures in a row that are borne.
        pause_s, longest_s: the first wait before another try; it doubles up to the longest.
    """

    def __init__(self, what: str, limit: int, pause_s: float = 0.5, longest_s: float = 30.0) -> None:
        self.what, self.limit, self.pause_s, self.longest_s = what, limit, pause_s, longest_s
        self.in_a_row = 0

    def progressed(self) -> None:
        self.in_a_row = 0

    def failed(self, failure: Failure) -> float:
        """Note a failure; seconds to wait before the next try.

        Raises:
            Fatal: a fatal failure, or one too many.
        """
        self.in_a_row += 1
        if failure.kind is Kind.FATAL:
            raise Fatal(self.what, failure) from failure.source
        if self.in_a_row > self.limit:
            raise Fatal(
                f"{self.what} failed {self.in_a_row} times without progress, the last time", failure
            ) from failure.source
        return float(min(self.longest_s, self.pause_s * 2.0 ** min(self.in_a_row - 1, 99)))


def _lineage(error: BaseException) -> Iterator[BaseException]:
    """What Ray says was raised in the other process (its `cause`), then the error itself."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException) and cause is not error:
        yield from _lineage(cause)
    yield error


def _first_lines(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[0] if len(lines) < 2 else f"{lines[0]} ... {lines[-1]}"
