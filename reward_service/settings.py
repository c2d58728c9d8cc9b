"""Settings of the reward service."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

NOT_IN_REPLICAS = (
    *("replicas", "min_replicas", "max_replicas", "ongoing_images", "scale_up_s", "scale_down_s"),
    *("deadline_s", "retries", "start_timeout_s", "health_check_timeout_s", "app"),
    *("probe_every_s", "stuck_after_s"),  # which a replica is told of without a restart
)
_PREFIX, _TERM = "reward-", ".term."


@dataclass(frozen=True)
class RewardSettings:
    """A scorer and how it is served.

    Args:
        scorer: registered name, or "module:class".
        params: arguments of the scorer.
        replicas: copies of the scorer, each in its own process.
        min_replicas, max_replicas: between them Ray Serve chooses the number itself, by the images that wait or are
            scored; null keeps `replicas`.
        ongoing_images: of each replica, that it adds or takes away replicas for; null: two batches.
        scale_up_s, scale_down_s: for how long more (fewer) replicas must be wanted before they are.
        max_batch: images of one call of the scorer, filled from the blocks of several callers.
        max_wait_s: how long an idle scorer waits for more blocks before it starts on a smaller batch.
        deadline_s: time from submission to reply, retries included.
        retries: repetitions of a request whose replica died.
        queue: requests that a replica holds at most, and that a caller's process has waiting for one at most; further
            ones are made when there is room.
        threads: torch threads of a replica.
        num_cpus, num_gpus, resources: what Ray reserves for each replica. With a GPU, or a part of one, the scorer
            runs on it.
        start_timeout_s: time for placing the replicas and loading the scorer, as long as the model takes to arrive
            from network storage.
        health_check_timeout_s: a replica that doesn't answer for so long is replaced. Checks begin when the scorer
            is built, so that loading doesn't count. A scorer that keeps Python's lock needs more than one call takes.
        stuck_after_s: so is one whose scorer has been at one call for so long; a first call may compile for minutes.
        probe_every_s: how often a replica scores its probe pictures, between two batches; one whose scores changed is
            replaced.
        picture_side: of the square pictures that it will be asked for: a replica scores one before it takes requests,
            so that a size that its scorer refuses is told at the start; null: unknown. A run says its crop.
        app: name of a service that stands alone (`restorl reward serve`) to use instead of one of the run's own.

    The defaults of `max_batch` and `deadline_s` suit a small scorer. A large one (billions of parameters) wants a
    `max_batch` that fits its memory (32 in configs/rewards), and a `deadline_s` of several times what its whole queue
    takes: a rollout sends all its blocks at once, so the last waits for all before it.
    """

    scorer: str = "lite0_levels"
    params: dict[str, Any] = field(default_factory=dict)
    replicas: int = 1
    max_batch: int = 64
    max_wait_s: float = 0.005
    deadline_s: float = 120.0
    retries: int = 3
    queue: int = 64
    threads: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    resources: dict[str, float] = field(default_factory=dict)
    start_timeout_s: float = 600.0
    health_check_timeout_s: float = 30.0
    stuck_after_s: float = 1800.0
    probe_every_s: float = 30.0
    picture_side: int | None = None
    app: str | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    ongoing_images: int | None = None
    scale_up_s: float = 15.0
    scale_down_s: float = 120.0

    def __post_init__(self) -> None:
        if not self.scorer:
            raise ValueError("scorer is empty; name one")
        for name, least in (("replicas", 1), ("max_batch", 1), ("retries", 0), ("queue", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")
        for name in ("max_wait_s", "num_cpus", "num_gpus", "scale_down_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}={getattr(self, name)}: must be a finite number >= 0")
        for name in (
            *("deadline_s", "start_timeout_s", "health_check_timeout_s"),
            *("stuck_after_s", "scale_up_s", "probe_every_s"),
        ):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name}={getattr(self, name)}: must be a finite number above 0")
        for name, amount in self.resources.items():
            if not amount > 0:
                raise ValueError(f"resources[{name!r}]={amount}: must be above 0; leave it out instead")
        if self.picture_side is not None and self.picture_side < 1:
            raise ValueError(
                f"picture_side={self.picture_side}: pixels a side, at least 1, or null where it isn't known"
            )
        self._check_scaling()
        if self.app is not None:
            check_name(self.app)

    def _check_scaling(self) -> None:
        low, high = self.min_replicas, self.max_replicas
        if (low is None) != (high is None):
            raise ValueError(f"min_replicas={low}, max_replicas={high}: give both, or neither for `replicas`")
        if low is not None and high is not None and not 1 <= low <= high:
            raise ValueError(f"min_replicas={low}, max_replicas={high}: 1 at least, and the first no larger")
        if self.ongoing_images is not None and self.ongoing_images < 1:
            raise ValueError(f"ongoing_images={self.ongoing_images}: at least 1, or null for two batches")

    @property
    def autoscales(self) -> bool:
        return self.min_replicas is not None

    @property
    def at_first(self) -> int:
        """Replicas that it starts with."""
        return self.replicas if self.min_replicas is None else self.min_replicas

    @property
    def target_images(self) -> int:
        """Images, waiting or being scored, that a replica is for."""
        return 2 * self.max_batch if self.ongoing_images is None else self.ongoing_images

    @property
    def code_version(self) -> str:
        """Equal for settings that differ only in the number of replicas and in what the client does."""
        kept = {k: v for k, v in asdict(self).items() if k not in NOT_IN_REPLICAS}
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def reward_app_name(run_id: str, term: str = "") -> str:
    """The name of a run's service, or of that of one of its terms: runs on one cluster never share one."""
    return _PREFIX + run_id + (_TERM + term if term else "")


def terms_of(run_app: str, names: Iterable[str]) -> dict[str, str]:
    """Term -> service among `names`, of the run whose only service would be `run_app`; that one is the term ""."""
    found = {name[len(run_app) :]: name for name in names if name == run_app or name.startswith(run_app + _TERM)}
    return {term.removeprefix(_TERM): name for term, name in found.items()}


def check_name(name: str) -> None:
    """The name of a service that stands alone.

    Raises:
        ValueError: it could be that of a run's service, or is no word.
    """
    if not name or name.startswith(_PREFIX) or any(c.isspace() or c in "/,=" for c in name):
        raise ValueError(
            f"app={name!r}: the name of a service that stands alone is a word that doesn't begin with {_PREFIX!r}, "
            "which runs use for their own"
        )


def run_of_app(name: str) -> str:
    """The run id in the name of a service; the name itself if it belongs to no run."""
    return name.removeprefix(_PREFIX).partition(_TERM)[0]


@dataclass(frozen=True)
class RewardApp:
    """A deployed reward service, as its clients know it; can be sent to other processes.

    Args:
        name: of the application in Ray Serve.
        scorer, version: what a replica said it is; the answer of any other is refused.
        deadline_s, retries: see RewardSettings.
        max_batch: images of a request; a larger block is sent as several, each of which is repeated alone.
    """

    name: str
    scorer: str
    version: str
    deadline_s: float = RewardSettings.deadline_s
    retries: int = RewardSettings.retries
    max_batch: int = RewardSettings.max_batch
