"""Files of a run that are only looked at: strips, TensorBoard, the report. What can't be made is told and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ForLooking:
    """Bears what goes wrong with files that nothing rests on, so that the run goes on.

    Args:
        told: gets a line, once for each kind of file.
    """

    def __init__(self, told: Callable[[str], None]) -> None:
        self.told = told
        self.missing: Counter[str] = Counter()  # by kind of file

    def lack(self, kind: str, error: Exception) -> None:
        """One file of this kind is missing, or not whole."""
        self.missing[kind] += 1
        if self.missing[kind] == 1:
            self.told(f"{kind} is missing, and the run goes on without it: {error}")

    @contextmanager
    def bearing(self, kind: str) -> Iterator[None]:
        """What a file system or a damaged file (ImageError and DataError are ValueErrors) raises in here is borne."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.lack(kind, error)
