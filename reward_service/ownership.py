"""Whose a reward service is: the Ray job that deployed it, kept in the cluster's own key-value store.

Applications of Ray Serve outlive the driver that made them and are replaced by anyone who uses their name. A claim
keeps others off while its job lives; a service whose job has ended without taking it along ends itself.
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


@dataclass(frozen=True)
class Owner:
    """A Ray job, and where its driver runs, for messages."""

    job: str
    who: str


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
    """Whether the owner's job runs. True where that can't be found out (through a ray:// connection)."""
    try:
        jobs: list[dict[str, Any]] = ray._private.state.jobs()
    except Exception:
        return True
    return any(job["JobID"] == owner.job and not job["IsDead"] for job in jobs)


def claim(name: str) -> None:
    """Make this job the owner.

    Raises:
        RewardUnavailable: another job that still runs is it.
    """
    mine = this_job()
    content = json.dumps(asdict(mine)).encode()
    # Without overwriting, it is atomic: of two that claim at once, one sees the other.
    if not internal_kv._internal_kv_put(_key(name), content, overwrite=False, namespace=_SPACE):
        return
    found = owner_of(name)
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
        internal_kv._internal_kv_del(_key(name), namespace=_SPACE)


def _key(name: str) -> bytes:
    return f"reward-owner:{name}".encode()
