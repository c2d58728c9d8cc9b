"""What a replica tells of its last batches: throughput, fill, and percentiles of times. No Ray in here."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from reward_service.batching import BatchReport

KEPT = 2048  # blocks and batches that percentiles are of
WINDOW_S = 60.0  # that images a second are counted over


class Figures:
    """Running figures of one replica. Called in the event loop only.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.began = clock, clock()
        self.images = self.blocks = 0
        self.failures: Counter[str] = Counter()
        self.queued: deque[float] = deque(maxlen=KEPT)
        self.seconds: deque[float] = deque(maxlen=KEPT)
        self.fill: deque[float] = deque(maxlen=KEPT)
        self.recent: deque[tuple[float, int]] = deque()

    def observe(self, report: BatchReport) -> None:
        self.failures.update(report.errors)
        if not report.images:
            return
        now = self.clock()
        self.images += report.images
        self.blocks += report.blocks
        self.queued.extend(report.queued_s)
        self.seconds.append(report.seconds)
        self.fill.append(report.images / report.limit if report.limit else 1.0)
        self.recent.append((now, report.images))
        self._forget(now)

    def summary(self) -> dict[str, Any]:
        """Plain numbers: images and blocks so far, failures by kind, images/s of the last minute, and the lists that
        `merged` makes percentiles of."""
        now = self.clock()
        self._forget(now)
        lasted = max(min(now - self.began, WINDOW_S), 1e-3)
        return {
            "images": self.images,
            "blocks": self.blocks,
            "failures": dict(self.failures),
            "images_per_s": sum(count for _, count in self.recent) / lasted,
            "queued_s": list(self.queued),
            "seconds": list(self.seconds),
            "fill": list(self.fill),
        }

    def _forget(self, now: float) -> None:
        while self.recent and self.recent[0][0] < now - WINDOW_S:
            self.recent.popleft()


def merged(summaries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of all replicas together: totals, mean fill (None before the first batch), p50 and p99 of the queue and scorer
    times in seconds."""
    found = list(summaries)

    def every(name: str) -> list[float]:
        return [value for summary in found for value in summary[name]]

    fill, failures = every("fill"), Counter[str]()
    for summary in found:
        failures.update(summary["failures"])
    return {
        "images": sum(s["images"] for s in found),
        "images_per_s": sum(s["images_per_s"] for s in found),
        "failures": dict(failures),
        "fill": sum(fill) / len(fill) if fill else None,
        "queue_p50_s": percentile(every("queued_s"), 0.5),
        "queue_p99_s": percentile(every("queued_s"), 0.99),
        "scorer_p50_s": percentile(every("seconds"), 0.5),
        "scorer_p99_s": percentile(every("seconds"), 0.99),
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """The least value that at least `share` of the values don't exceed; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[min(max(-int(-share * len(ordered) // 1) - 1, 0), len(ordered) - 1)]
