"""Files of JSON lines as one looks at them: what can be read is, and a damaged line is told and costs no other."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MOST_TOLD = 5  # damaged lines of a file, one by one
BLOCK = 1 << 22  # bytes read at a time
MOST_LINE = 1 << 24  # bytes: what has no end by then is no line of ours


class Lines:
    """Follows a file that may be growing, be written anew, or not be there yet.

    Args:
        sink: gets each object once, in order.
        again: the file was written anew: what the sink has got counts no longer, and all comes again.
        needs: keys that each object has.
    """

    def __init__(
        self,
        path: Path,
        sink: Callable[[dict[str, Any]], None],
        again: Callable[[], None] = lambda: None,
        needs: Sequence[str] = (),
    ) -> None:
        self.path, self.sink, self.again, self.needs = path, sink, again, tuple(needs)
        self._begin(None)

    def _begin(self, identity: tuple[int, int] | None) -> None:
        self._identity, self._offset, self._number = identity, 0, 0
        self._damaged: list[str] = []
        self._count = 0

    def read(self) -> list[str]:
        """Give the sink what has come since; returns what is wrong with the file, a sentence each, empty if nothing."""
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                identity = (stat.st_dev, stat.st_ino)
                if self._identity not in (None, identity) or stat.st_size < self._offset:
                    self.again()
                    self._begin(identity)
                self._identity = identity
                file.seek(self._offset)
                rest = b""
                while block := file.read(BLOCK):
                    *whole, rest = (rest + block).split(b"\n")
                    for line in whole:
                        self._take(line)
                    self._offset += sum(map(len, whole)) + len(whole)
                    if len(rest) > MOST_LINE:
                        return [*self.damage(), f"{self.path.name}: line {self._number + 1} has no end; remove it"]
        except FileNotFoundError:
            if self._identity is not None:
                self.again()
                self._begin(None)
            return []
        except OSError as error:
            return [*self.damage(), f"{self.path.name} can't be read ({error.strerror or error})"]
        return self.damage()

    def damage(self) -> list[str]:
        """Of what was read so far."""
        more = self._count - len(self._damaged)
        return [*self._damaged, *([f"{self.path.name}: {more} more damaged lines"] if more else [])]

    def _take(self, line: bytes) -> None:
        self._number += 1
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            self._tell(f"not JSON ({getattr(error, 'msg', None) or error})")
            return
        if not isinstance(row, dict):
            self._tell("no JSON object")
        elif missing := [key for key in self.needs if key not in row]:
            self._tell(f"it has no {missing[0]!r}")
        else:
            try:
                self.sink(row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._tell(f"no such record as is written here ({type(error).__name__}: {error})")

    def _tell(self, what: str) -> None:
        self._count += 1
        if len(self._damaged) < MOST_TOLD:
            self._damaged.append(f"{self.path.name}:{self._number}: {what}")
