"""Clocks and memory of a device, a GPU or, to try the program, a CPU."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

GB = 1e9


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def card(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def stem_of(name: str) -> str:
    """For a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def seconds(work: Callable[[], object], device: str, rounds: int, warm: int = 1) -> float:
    """The median of `rounds`, each from an idle device to an idle device, after `warm` others."""

    def once() -> float:
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        return time.perf_counter() - began

    for _ in range(warm):
        once()
    return statistics.median(once() for _ in range(rounds))


@contextmanager
def peak(device: str, found: dict[str, Any], name: str = "peak_gb") -> Iterator[None]:
    """Puts into `found` the most that torch held at once inside, what was there before included; nothing on a CPU."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    yield
    if device == "cuda":
        found[name] = torch.cuda.max_memory_allocated() / GB


def product_flops(device: str, dtype: torch.dtype, side: int, rounds: int) -> float:
    """Arithmetic a second of one large product of matrices: what this card does at most in practice."""
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device, rounds, warm=3)


class Marks:
    """Moments on the device's own clock: CUDA's events, which wait for nothing, or a CPU's time."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._moments: list[tuple[str, Any]] = []

    def __call__(self, name: str) -> None:
        """The end of what is called `name`."""
        if self._cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
            self._moments.append((name, moment))
        else:
            self._moments.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """From each mark but the first back to the one before."""
        wait("cuda" if self._cuda else "cpu")
        pairs = zip(self._moments, self._moments[1:], strict=False)
        if self._cuda:
            return {name: a.elapsed_time(b) / 1000 for (_, a), (name, b) in pairs}
        return {name: b - a for (_, a), (name, b) in pairs}
