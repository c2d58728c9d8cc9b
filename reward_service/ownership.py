"""Whose a reward service is: the Ray job that deployed it, or nobody's, kept in the cluster's own key-value store.

Applications of Ray Serve outlive the driver that made them and are replaced by anyone who uses their name. A claim
keeps others off while its job lives; a service whose job has ended without taking it along ends itself. One that stands
alone belongs to no job, and stays until it is stopped.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray.experimental import internal_kv

from reward_service.errors import RewardUnavailable

_SPACE = b"restorl"
_NO_JOB = ""


@dataclass(frozen=True)
class Owner:
    """A Ray job, and where its driver runs, for messages; of a service that stands alone only who started it."""

    job: str
    who: str

    @property
    def stands_alone(self) -> bool:
        return self.job == _NO_JOB


def this_job() -> Owner:
    """The job of this process (of a worker: that of its driver)."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = str(os.getuid())
    return Owner(ray.get_runtime_context().get_job_id(), f"{user}@{socket.gethostname()}, process {os.getpid()}")


def owner_of(name: str) -> Owner | None:
    """Who claimed the service of that name; None if nobody has."""
    found = internal_kv._internal_kv_get(_key(name), namespace=_SPACE)
    return None if found is None else Owner(**json.loads(found))


def is_alive(owner: Owner) -> bool:
    """Whether the owner's job runs, or it needs none. True where that can't be found out (by a ray:// connection)."""
    if owner.stands_alone:
        return True
    try:
        jobs: list[dict[str, Any]] = ray._private.state.jobs()
    except Exception:
        return True
    return any(job["JobID"] == owner.job and not job["IsDead"] for job in jobs)


def claim(name: str, stands_alone: bool = False) -> None:
    """Make this job the owner, or nobody: the service then stands alone.

    Raises:
        RewardUnavailable: another job that still runs is it, or it stands alone and isn't to.
    """
    mine = this_job()
    if stands_alone:
        mine = Owner(_NO_JOB, mine.who)
    content = json.dumps(asdict(mine)).encode()
    # Without overwriting, it is atomic: of two that claim at once, one sees the other.
    if not internal_kv._internal_kv_put(_key(name), content, overwrite=False, namespace=_SPACE):
        return
    found = owner_of(name)
    if found is not None and found.stands_alone and not stands_alone:
        raise RewardUnavailable(
            f"reward service {name!r} stands alone ({found.who} started it): use it by reward.app={name}, or end it by "
            f"`restorl reward stop {name}`"
        )
    if found is not None and found.job != mine.job and is_alive(found):
        raise RewardUnavailable(
            f"reward service {name!r} belongs to a run that is still there ({found.who}, Ray job {found.job}): "
            "stop that run first, or start another run"
        )
    internal_kv._internal_kv_put(_key(name), content, overwrite=True, namespace=_SPACE)


def is_mine(name: str) -> bool:
    found = owner_of(name)
    return found is not None and found.job == this_job().job


def release(name: str) -> None:
    """Give the name up, if it is this job's."""
    if is_mine(name):
        forget(name)


def forget(name: str) -> None:
    """Nobody has that name any more, whoever had it."""
    internal_kv._internal_kv_del(_key(name), namespace=_SPACE)


def _key(name: str) -> bytes:
    return f"reward-owner:{name}".encode()
