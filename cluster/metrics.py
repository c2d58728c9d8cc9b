"""Counters of a run in Ray's dashboard and on its metrics port, as `ray_restorl_*`.

Every process (driver, actor, learner rank) makes its own `RunMetrics`; Ray adds them up. Ray exports every few
seconds, so what a process counted just before it was killed may be missing here: these numbers are for watching, the
run's metrics.jsonl and ledger are for deciding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PHASES = ("rollout", "reward_wait", "learner_wait", "step", "publish")
BOUNDARIES_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
STALENESS = [0.5, 1.5, 2.5, 3.5, 5.5, 8.5, 16.5]  # halves, so that whole versions fall between them

# name -> (kind, tag, description)
METRICS: dict[str, tuple[str, str | None, str]] = {
    "phase_seconds": ("histogram", "phase", "Seconds of one pass of a phase"),
    # Ray's histogram sums bucket midpoints: a mean needs a counter of its own.
    "phase_busy_seconds": ("counter", "phase", "Seconds spent in a phase"),
    "phase_passes": ("counter", "phase", "Passes of a phase"),
    "queue_depth": ("gauge", None, "Groups waiting in the stream"),
    "queue_bytes": ("gauge", None, "Bytes waiting in the stream"),
    "in_flight": ("gauge", None, "Groups admitted and not yet published"),
    "iteration": ("gauge", None, "Optimiser steps taken"),
    "weights_version": ("gauge", None, "Version of the weights published last"),
    "reward_mean": ("gauge", None, "Mean reward of the last batch"),
    "staleness_versions": ("histogram", None, "Weights versions between rollout and use of a group"),
    "trajectories": ("counter", "what", "Rollouts published and consumed"),
    "dropped_samples": ("counter", "reason", "Rollouts dropped, by reason"),
    "call_failures": ("counter", "reason", "Calls of actors that failed and were given out again, by reason"),
    "reward_request_failures": ("counter", "kind", "Reward requests that failed for good, by kind"),
}


@dataclass
class Elapsed:
    """Seconds of a phase; valid after its `with` block."""

    seconds: float = 0.0

    def __float__(self) -> float:
        return self.seconds


class RunMetrics:
    """The metrics of one process; each is registered at its first use.

    Usable without Ray too (a plain `restorl restore`, a test): then phases are timed and nothing is exported.

    Args:
        role: "driver", "actor", "learner" or "reward"; a tag of every metric.
        run_id: of the run that is counted; a tag of every metric, as several runs may share a cluster.
    """

    def __init__(self, role: str, run_id: str):
        self.role, self.run_id = role, run_id
        self._made: dict[str, Any] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Elapsed]:
        """Time a block: `with metrics.phase("rollout") as took: ...`, then `took.seconds`. A block that raises counts
        too.

        Raises:
            ValueError: a name that is not in PHASES.
        """
        if name not in PHASES:
            raise ValueError(f"phase {name!r} is none of {', '.join(PHASES)}")
        elapsed, start = Elapsed(), time.perf_counter()
        try:
            yield elapsed
        finally:
            elapsed.seconds = time.perf_counter() - start
            self.observe_phase(name, elapsed.seconds)

    def observe_phase(self, name: str, seconds: float) -> None:
        """A phase that was timed elsewhere."""
        self._record("phase_seconds", seconds, name)
        self._record("phase_busy_seconds", seconds, name)
        self._record("phase_passes", 1, name)

    def queue(self, groups: int, payload_bytes: int | None = None) -> None:
        self._record("queue_depth", groups)
        if payload_bytes is not None:
            self._record("queue_bytes", payload_bytes)

    def in_flight(self, groups: int) -> None:
        self._record("in_flight", groups)

    def progress(self, iteration: int, weights_version: int, reward_mean: float | None = None) -> None:
        self._record("iteration", iteration)
        self._record("weights_version", weights_version)
        if reward_mean is not None:
            self._record("reward_mean", reward_mean)

    def staleness(self, versions: int) -> None:
        self._record("staleness_versions", versions)

    def published(self, rollouts: int) -> None:
        self._record("trajectories", rollouts, "published")

    def consumed(self, rollouts: int) -> None:
        self._record("trajectories", rollouts, "consumed")

    def dropped(self, reason: str, rollouts: int = 1) -> None:
        """`reason`: a word such as "stale", "reward_timeout", "schema"."""
        self._record("dropped_samples", rollouts, reason)

    def failed(self, reason: str) -> None:
        """A call of an actor; `reason`: a word of the policy of failures."""
        self._record("call_failures", 1, reason)

    def reward_failed(self, kind: str | BaseException, count: int = 1) -> None:
        """`kind`: a word, or the error itself (its class is the kind)."""
        self._record("reward_request_failures", count, kind if isinstance(kind, str) else type(kind).__name__)

    def _record(self, name: str, value: float, tag: str | None = None) -> None:
        if not ray_is_running():
            return
        metric = self._made.get(name)
        kind, key, description = METRICS[name]
        if metric is None:
            metric = self._made[name] = _make(name, kind, key, description, {"role": self.role, "run": self.run_id})
        tags = {} if key is None or tag is None else {key: tag}
        if kind == "counter":
            if value > 0:  # Ray refuses to count nothing
                metric.inc(value, tags=tags)
        elif kind == "gauge":
            metric.set(value, tags=tags)
        else:
            metric.observe(max(value, 0.0), tags=tags)


def ray_is_running() -> bool:
    """Whether this process is connected to Ray; doesn't import it."""
    import sys

    ray = sys.modules.get("ray")
    return ray is not None and bool(getattr(ray, "is_initialized", lambda: False)())


def _make(name: str, kind: str, key: str | None, description: str, default: dict[str, str]) -> Any:
    from ray.util import metrics

    tags = (*default, *(() if key is None else (key,)))
    if kind == "histogram":
        boundaries = STALENESS if name.startswith("staleness") else BOUNDARIES_S
        made: Any = metrics.Histogram(f"restorl_{name}", description, boundaries=boundaries, tag_keys=tags)
    else:
        cls = metrics.Counter if kind == "counter" else metrics.Gauge
        made = cls(f"restorl_{name}", description, tag_keys=tags)
    return made.set_default_tags(default)
