"""Files of a run that are only looked at: strips, TensorBoard, the report. What can't be made is told and counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ForLooking:
    """Bears what goes wrong with files that nothing rests on, so that the run goes on; in any thread.

    Args:
        told: gets a line, once for each kind of file.
    """

    def __init__(self, told: Callable[[str], None]) -> None:
        self.told = told
        self._missing: Counter[str] = Counter()
        self._counting = threading.Lock()

    @property
    def missing(self) -> Counter[str]:
        """So many of each kind of file, as of now."""
        with self._counting:
            return self._missing.copy()

    def lack(self, kind: str, error: Exception) -> None:
        """One file of this kind is missing, or not whole."""
        with self._counting:
            self._missing[kind] += 1
            first = self._missing[kind] == 1
        if first:
            self.told(f"{kind} is missing, and the run goes on without it: {error}")

    @contextmanager
    def bearing(self, kind: str) -> Iterator[None]:
        """What a file system or a damaged file (ImageError and DataError are ValueErrors) raises in here is borne."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.lack(kind, error)
