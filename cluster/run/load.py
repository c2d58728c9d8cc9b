"""How many cores there are for a run on this machine, and how many of them others use."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil

FULL = 0.85  # of a machine's cores in use: below, nobody waits for another
IDLE = ("idle", "iowait", "guest", "guest_nice")  # guests' time is part of user's


def usable_cores(group: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that this process may use, by its affinity and by the quotas of its control groups (a container's)."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        lines = group.read_text(encoding="utf-8").splitlines()
    except OSError:
        return cores
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if not controllers:  # version 2: one tree, in which each level may have a quota
            inner = root / path.strip("/")
            levels = [inner, *(p for p in inner.parents if p == root or root in p.parents)]
            quotas = [_numbers(level / "cpu.max") for level in levels]
        elif "cpu" in controllers.split(","):
            level = root / "cpu" / path.strip("/")
            level = level if level.is_dir() else root / "cpu"  # within a container its own group is the root
            quotas = [_numbers(level / "cpu.cfs_quota_us") + _numbers(level / "cpu.cfs_period_us")]
        else:
            continue
        cores = min([cores, *(q[0] / q[1] for q in quotas if len(q) == 2 and min(q) > 0)])
    return cores


class Load:
    """From its making on: what processes that are neither this one nor its descendants use of the machine."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy, self._own = _busy_s(), _own_s()

    def others(self) -> float:
        """Cores that others used, on average; 0 where the machine had room for all."""
        span, cores = time.monotonic() - self._began, os.cpu_count() or 1
        busy, own = _busy_s() - self._busy, _own_s() - self._own
        if span <= 0 or busy < FULL * cores * span:
            return 0.0
        return max(0.0, min(busy - own, busy) / span)


def _busy_s() -> float:
    """Seconds that all cores of the machine have worked."""
    return sum(value for name, value in psutil.cpu_times()._asdict().items() if name not in IDLE)


def _own_s() -> float:
    """Seconds that this process and its living descendants have worked, and what these have waited for."""
    root, total = psutil.Process(), 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it ended while we looked
        total += times.user + times.system + getattr(times, "children_user", 0.0) + getattr(times, "children_system", 0)
    return total


def _numbers(path: Path) -> list[float]:
    """The numbers of a file; none where there is no such file, or where one is the word `max`."""
    try:
        words = path.read_text(encoding="utf-8").split()
        return [] if "max" in words else [float(word) for word in words]
    except (OSError, ValueError):
        return []
