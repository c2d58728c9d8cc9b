"""Counters of a run in Ray's dashboard and on its metrics port, as `ray_restorl_*`.

Every process (driver, actor, learner rank) makes its own `RunMetrics`; Ray adds them up. Ray exports every few
seconds, so what a process counted just before it was killed may be missing here: these numbers are for watching, the
run's metrics.jsonl and ledger are for deciding.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PHASES = ("rollout", "reward_wait", "learner_wait", "step", "publish")
BOUNDARIES_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
STALENESS = [0.5, 1.5, 2.5, 3.5, 5.5, 8.5, 16.5]  # halves, so that whole versions fall between them

# name -> (kind, tags, description)
METRICS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "phase_seconds": ("histogram", ("phase",), "Seconds of one pass of a phase"),
    # Ray's histogram sums bucket midpoints: a mean needs a counter of its own.
    "phase_busy_seconds": ("counter", ("phase",), "Seconds spent in a phase"),
    "phase_passes": ("counter", ("phase",), "Passes of a phase"),
    "queue_depth": ("gauge", (), "Groups waiting in the stream"),
    "queue_bytes": ("gauge", (), "Bytes waiting in the stream"),
    "queue_max_bytes": ("gauge", (), "Bytes that may wait in the stream"),
    "store_used_bytes": ("gauge", (), "Memory that the store's server uses"),
    "store_max_bytes": ("gauge", (), "Memory at which the store's server refuses more"),
    "in_flight": ("gauge", (), "Groups admitted and not yet published"),
    "iteration": ("gauge", (), "Optimiser steps taken"),
    "iterations_wanted": ("gauge", (), "Optimiser steps of the whole run"),
    "iteration_seconds": ("gauge", (), "Seconds of the last iteration"),
    "stall_timeout_seconds": ("gauge", (), "stall_timeout_s, after which a run in which nothing ends well is ended"),
    "progress_timestamp_seconds": ("gauge", (), "When a step or a call of an actor last ended well, Unix time"),
    "overlap": ("gauge", (), "Share of the shorter of rolling out and learning that the other hid"),
    "weights_version": ("gauge", (), "Version of the weights published last"),
    "reward_mean": ("gauge", (), "Mean reward of the last batch"),
    "reward_term": ("gauge", ("term",), "Mean score of a term of the reward in the last batch"),
    "ratio": ("gauge", ("figure",), "Probability ratio of the last batch's decisions: mean, min, max"),
    "ratio_first_deviation": ("gauge", (), "Largest |ratio - 1| before any update of the last batch"),
    "clip": ("gauge", (), "objective.clip, which the ratio is clipped by"),
    "clip_fraction": ("gauge", (), "Share of the last batch's decisions that were clipped"),
    "heldout": ("gauge", ("who", "figure"), "Mean of a figure over the held-out pictures, last evaluation"),
    "heldout_worse": ("gauge", (), "Held-out figures that got worse while the held-out reward got better"),
    "staleness_versions": ("histogram", (), "Weights versions between rollout and use of a group"),
    "trajectories": ("counter", ("what",), "Rollouts published and consumed"),
    "dropped_samples": ("counter", ("reason",), "Rollouts dropped, by reason"),
    "call_failures": ("counter", ("reason",), "Calls of actors that failed and were given out again, by reason"),
    "reward_request_failures": ("counter", ("kind",), "Reward requests that failed for good, by kind"),
}
# Ray forgets a gauge once it has exported it, and its agent after two more exports, 20 s: what is set once an iteration
# would be seen for moments only.
REPEAT_S = 5.0
RATIOS = {"mean": "ratio_mean", "min": "ratio_min", "max": "ratio_max"}  # figure -> key of a step's metrics


@dataclass
class Elapsed:
    """Seconds of a phase; valid after its `with` block."""

    seconds: float = 0.0

    def __float__(self) -> float:
        return self.seconds


class RunMetrics:
    """The metrics of one process; each is registered at its first use.

    Usable without Ray too (a plain `restorl restore`, a test): then phases are timed and nothing is exported. Gauges
    are exported until `close`, from a thread of their own, also while the process is busy or stuck.

    Args:
        role: "driver", "actor", "learner" or "reward"; a tag of every metric.
        run_id: of the run that is counted; a tag of every metric, as several runs may share a cluster.
    """

    def __init__(self, role: str, run_id: str):
        self.role, self.run_id = role, run_id
        self._made: dict[str, Any] = {}
        self._gauges: dict[tuple[str, tuple[str, ...]], float] = {}
        self._closed = threading.Event()

    def close(self) -> None:
        """Gauges are exported no more; those of a run that has ended vanish within half a minute."""
        self._closed.set()
        self._gauges.clear()

    def repeat(self) -> None:
        """Export every gauge as it is."""
        for (name, values), value in list(self._gauges.items()):
            self._export(name, value, values)

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

    def queue(self, groups: int, payload_bytes: int | None = None, max_bytes: int | None = None) -> None:
        self._record("queue_depth", groups)
        if payload_bytes is not None:
            self._record("queue_bytes", payload_bytes)
        if max_bytes is not None:
            self._record("queue_max_bytes", max_bytes)

    def store(self, used_bytes: int | None, max_bytes: int | None) -> None:
        """Memory of the store's server; None: it doesn't say, or has no limit."""
        if used_bytes is not None:
            self._record("store_used_bytes", used_bytes)
        if max_bytes is not None:
            self._record("store_max_bytes", max_bytes)

    def in_flight(self, groups: int) -> None:
        self._record("in_flight", groups)

    def begin(self, iteration: int, iterations: int, stall_timeout_s: float, clip: float) -> None:
        """The run begins, or goes on, after `iteration` of `iterations`; `clip` is objective.clip."""
        self._record("iteration", iteration)
        self._record("iterations_wanted", iterations)
        self._record("stall_timeout_seconds", stall_timeout_s)
        self._record("clip", clip)
        self.alive()

    def alive(self) -> None:
        """Something has ended well just now."""
        self._record("progress_timestamp_seconds", time.time())

    def progress(self, iteration: int, weights_version: int, reward_mean: float | None = None) -> None:
        self._record("iteration", iteration)
        self._record("weights_version", weights_version)
        if reward_mean is not None:
            self._record("reward_mean", reward_mean)

    def step(self, record: Mapping[str, Any], overlap: float | None) -> None:
        """What a line of metrics.jsonl says of a step: terms of the reward, ratios, its time. None isn't recorded.

        Args:
            overlap: see `cluster.run.pace.overlap`.
        """
        for key, value in record.items():
            if key.startswith("term_") and key.endswith("_mean"):
                self._some("reward_term", value, key.removeprefix("term_").removesuffix("_mean"))
        for figure, key in RATIOS.items():
            self._some("ratio", record.get(key), figure)
        self._some("ratio_first_deviation", record.get("ratio_first"))
        self._some("clip_fraction", record.get("clip_fraction"))
        self._some("iteration_seconds", record.get("iteration_s"))
        self._some("overlap", overlap)

    def heldout(self, who: str, means: Mapping[str, float]) -> None:
        """An evaluation: `who` is "base", "now" or "ema"; figures of the inputs and the ground truth are left out."""
        for figure, value in means.items():
            if not figure.startswith(("input_", "gt_")):
                self._some("heldout", value, who, figure)

    def heldout_worse(self, figures: int) -> None:
        self._record("heldout_worse", figures)

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

    def _some(self, name: str, value: Any, *tags: str) -> None:
        """A gauge of a figure that may be missing: None, or no number."""
        if isinstance(value, int | float) and math.isfinite(value):
            self._record(name, float(value), *tags)

    def _record(self, name: str, value: float, *values: str) -> None:
        """`values`: of the metric's tags, in their order."""
        if METRICS[name][0] == "gauge" and ray_is_running() and not self._closed.is_set():
            if not self._gauges:
                of = (weakref.ref(self), self._closed)
                threading.Thread(target=_repeating, args=of, name="gauges", daemon=True).start()
            self._gauges[name, values] = value
        self._export(name, value, values)

    def _export(self, name: str, value: float, values: tuple[str, ...]) -> None:
        if not ray_is_running():
            return
        metric = self._made.get(name)
        kind, keys, description = METRICS[name]
        if metric is None:
            metric = self._made[name] = _make(name, kind, keys, description, {"role": self.role, "run": self.run_id})
        tags = dict(zip(keys, values, strict=True))
        if kind == "counter":
            if value > 0:  # Ray refuses to count nothing
                metric.inc(value, tags=tags)
        elif kind == "gauge":
            metric.set(value, tags=tags)
        else:
            metric.observe(max(value, 0.0), tags=tags)


def _repeating(metrics: weakref.ref[RunMetrics], closed: threading.Event) -> None:
    while not closed.wait(REPEAT_S):
        if (there := metrics()) is None:
            return
        there.repeat()
        del there  # what nobody else holds goes


def ray_is_running() -> bool:
    """Whether this process is connected to Ray; doesn't import it."""
    import sys

    ray = sys.modules.get("ray")
    return ray is not None and bool(getattr(ray, "is_initialized", lambda: False)())


def _make(name: str, kind: str, keys: tuple[str, ...], description: str, default: dict[str, str]) -> Any:
    from ray.util import metrics

    tags = (*default, *keys)
    if kind == "histogram":
        boundaries = STALENESS if name.startswith("staleness") else BOUNDARIES_S
        made: Any = metrics.Histogram(f"restorl_{name}", description, boundaries=boundaries, tag_keys=tags)
    else:
        cls = metrics.Counter if kind == "counter" else metrics.Gauge
        made = cls(f"restorl_{name}", description, tag_keys=tags)
    return made.set_default_tags(default)
