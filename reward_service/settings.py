"""Settings of the reward service."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class RewardSettings:
    """A scorer and how it is served.

    Args:
        scorer: registered name, or "module:class".
        params: arguments of the scorer.
        replicas: copies of the scorer, each in its own process.
        max_batch: images of one call of the scorer; blocks of several callers are merged up to it.
        max_wait_s: how long an idle scorer waits for more blocks before it starts on a smaller batch.
        deadline_s: time from submission to reply, retries included.
        retries: repetitions of a request whose replica died.
        queue: requests that a replica holds at most; further ones wait with their callers.
        threads: torch threads of a replica.
        num_cpus, num_gpus, resources: what Ray reserves for each replica.
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

    def __post_init__(self) -> None:
        if not self.scorer:
            raise ValueError("scorer is empty; name one")
        for name, least in (("replicas", 1), ("max_batch", 1), ("retries", 0), ("queue", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: at least {least}")
        for name in ("max_wait_s", "num_cpus", "num_gpus"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name}={getattr(self, name)}: must be a finite number >= 0")
        if not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            raise ValueError(f"deadline_s={self.deadline_s}: must be a finite number above 0")
        for name, amount in self.resources.items():
            if not amount > 0:
                raise ValueError(f"resources[{name!r}]={amount}: must be above 0; leave it out instead")

    @property
    def code_version(self) -> str:
        """Equal for settings that differ only in the number of replicas and in what the client does."""
        kept = {k: v for k, v in asdict(self).items() if k not in ("replicas", "deadline_s", "retries")}
        return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RewardApp:
    """A deployed reward service, as its clients know it; can be sent to other processes."""

    name: str = "reward"
    deadline_s: float = RewardSettings.deadline_s
    retries: int = RewardSettings.retries
