"""The policy of failures: each class of error has its kind, wherever it was raised."""

from __future__ import annotations

import copy
import errno
import importlib
import inspect
import os

import pytest
import ray.exceptions
import torch

from cluster.run.failures import POLICY, Failure, Fatal, Kind, Patience, classify
from learner.batch import BatchError
from learner.checkpoint import CheckpointOvertaken
from learner.group import LearnerDied, LearnerFailed, LearnerStuck, LearnerUnplaced
from learner.source import BatchTimeout
from restoration.images import ImageError
from reward_service.errors import InvalidReward, RewardTimeout, RewardUnavailable
from trajectories.errors import RecordTooLarge, StaleEpoch, StoreFull, StoreLost, StoreUnreachable, StoreUnready


def in_an_actor(error: Exception) -> Exception:
    """As `ray.get` raises what was raised in an actor."""
    return ray.exceptions.RayTaskError("roll", "a traceback", error).as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (ImageError("a.png is cut off"), Kind.POISON, "picture"),
        (BatchError("unequal"), Kind.POISON, "batch"),
        (InvalidReward("gave nan"), Kind.POISON, "reward:invalid"),
        (RewardTimeout("late"), Kind.TRANSIENT, "reward:timeout"),
        (RewardUnavailable("none"), Kind.TRANSIENT, "reward:unavailable"),
        (StoreUnreachable("away"), Kind.TRANSIENT, "store"),
        (StoreUnready("BUSY"), Kind.TRANSIENT, "store"),
        (StoreLost("emptied"), Kind.FATAL, "store"),
        (StoreFull("no memory"), Kind.FATAL, "store"),
        (StaleEpoch("epoch 1 is over"), Kind.TRANSIENT, "epoch"),
        (LearnerDied(1, "SIGKILL"), Kind.TRANSIENT, "learner"),
        (LearnerUnplaced("no room"), Kind.TRANSIENT, "place"),
        (CheckpointOvertaken("epoch 1 is over"), Kind.FATAL, "epoch"),
        (BatchTimeout("0 of 8 groups came"), Kind.FATAL, "batch"),
        (TimeoutError("late"), Kind.FATAL, "timeout"),
        (FloatingPointError("loss is nan"), Kind.FATAL, "diverged"),
        (torch.OutOfMemoryError("CUDA out of memory"), Kind.FATAL, "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), Kind.FATAL, "memory"),
        (RecordTooLarge("64 MiB"), Kind.FATAL, "store"),
        (OSError("disk full"), Kind.FATAL, "file"),
        (KeyError("a mistake in the code"), Kind.FATAL, "error"),
    ],
)
def test_an_error_has_the_same_kind_here_and_from_another_process(error: Exception, kind: Kind, reason: str) -> None:
    for seen in (error, in_an_actor(error)):
        failure = classify(seen)
        assert (failure.kind, failure.reason) == (kind, reason)
    assert str(error.args[0] if not isinstance(error, LearnerDied) else "SIGKILL") in str(classify(error))


def test_a_rank_that_raised_is_judged_by_what_it_raised() -> None:
    assert classify(LearnerFailed(0, "step", FloatingPointError("loss is nan"))).reason == "diverged"
    assert classify(LearnerFailed(0, "step", ValueError("shapes"))).kind is Kind.FATAL


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.RayActorError(),
        ray.exceptions.ActorUnavailableError("restarting", None),
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.OutOfMemoryError("the node ran short"),
        ray.exceptions.ObjectLostError("ab", None, ""),
        ray.exceptions.OwnerDiedError("ab", None, ""),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_ray_says_of_dead_processes_is_transient(error: Exception) -> None:
    assert classify(error).kind is Kind.TRANSIENT


def test_every_class_of_the_policy_exists() -> None:
    rooms = ("trajectories.errors", "reward_service.errors", "learner.batch", "learner.group", "learner.source")
    rooms += ("learner.checkpoint", "restoration.images", "ray.exceptions", "builtins", "torch")
    known = {name for room in rooms for name, _ in inspect.getmembers(importlib.import_module(room), inspect.isclass)}
    assert POLICY.keys() <= known


def test_patience_ends_after_so_many_failures_in_a_row_and_progress_renews_it() -> None:
    late = Failure(Kind.TRANSIENT, "reward:timeout", "late", "raise reward.deadline_s")
    patience = Patience("rollouts", limit=3, pause_s=1.0, longest_s=3.0)
    assert [patience.failed(late) for _ in range(3)] == [1.0, 2.0, 3.0]
    patience.progressed()
    assert [patience.failed(late) for _ in range(3)] == [1.0, 2.0, 3.0]
    with pytest.raises(Fatal, match="rollouts failed 4 times without progress, the last time: late; raise reward"):
        patience.failed(late)


def test_patience_bears_all_that_thousands_of_actors_had_when_they_were_lost_at_once() -> None:
    patience = Patience("rollouts", limit=8000)
    assert {patience.failed(Failure(Kind.TRANSIENT, "node", "lost")) for _ in range(8000)} >= {0.5, 30.0}


def test_a_fatal_failure_ends_patience_at_once() -> None:
    with pytest.raises(Fatal, match="the learner: loss is nan; resume with a lower"):
        Patience("the learner", 9).failed(classify(FloatingPointError("loss is nan")))


def test_errors_that_cross_processes_survive_the_way() -> None:
    """As Ray copies them. (Those of the learner's group are raised in the driver's process and stay there.)"""
    for error in (StaleEpoch("x"), RewardTimeout("x"), ImageError("x"), BatchError("x")):
        assert classify(copy.copy(error)).reason == classify(error).reason
        assert error.__reduce__()[0] is type(error)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space there, then go on with --resume"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "mounted writable"),
        (errno.EACCES, "let this user read and write there"),
        (errno.EIO, "look at that disk"),
        (errno.ENOENT, "was it moved, removed or unmounted"),
        (errno.ESTALE, "was it moved, removed or unmounted"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENOTEMPTY, "put it right, then go on with --resume"),  # which has no remedy of its own
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_what_the_system_says_of_a_file_is_fatal_with_the_file_and_what_to_do(number: int, remedy: str) -> None:
    failure = classify(OSError(number, os.strerror(number), "/runs/a/metrics.jsonl"))
    assert (failure.kind, failure.reason) == (Kind.FATAL, "file")
    assert os.strerror(number) in str(failure) and "/runs/a/metrics.jsonl" in str(failure) and remedy in failure.remedy


def test_a_rank_without_an_answer_is_dead_like_any_other_and_names_the_setting_that_gives_it_more_time() -> None:
    failure = classify(LearnerStuck(0, "no answer to step within 1800 s"))
    assert (failure.kind, failure.reason) == (Kind.TRANSIENT, "learner")
    assert "raise stall_timeout_s" in failure.remedy and "out of memory" not in failure.remedy
    assert "raise stall_timeout_s" in classify(TimeoutError()).remedy
    assert "source.timeout_s" in classify(BatchTimeout("0 of 8 groups came")).remedy


@pytest.mark.parametrize("name", POLICY)
def test_every_error_of_the_policy_says_what_to_do(name: str) -> None:
    assert POLICY[name][2]
