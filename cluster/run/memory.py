"""Peak memory of a run on this machine: proportional set size of the driver and all its descendants."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psutil

SHARE = 0.02


def tree_memory(pid: int | None = None) -> int:
    """Bytes (PSS, so that pages shared by several processes count once) of a process and its descendants."""
    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except (OSError, psutil.Error):
            continue  # it ended while we looked
    return total


class MemoryWatch:
    """Samples `tree_memory` in the background; `peak` is the largest sample in bytes.

    The kernel walks all pages of all processes for a sample, so that it is taken every `every_s` seconds, or as seldom
    as it needs to be to cost `SHARE` of a core.
    """

    def __init__(self, every_s: float = 2.0) -> None:
        self.every_s, self.peak = every_s, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.thread_time()
            self.peak = max(self.peak, tree_memory())
            self._stop.wait(max(self.every_s, (time.thread_time() - began) / SHARE))
