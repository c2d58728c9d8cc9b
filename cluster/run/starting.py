"""What a starting run waits for: a line that changes on a terminal, a line for each part that is up elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.status import Status


class Starting:
    """Shows which of `parts` are still awaited, and for how long each was.

    Args:
        console: where to write; stderr by default.
    """

    def __init__(self, parts: Sequence[str], console: Console | None = None) -> None:
        self.waiting = list(parts)
        self.console = console or Console(stderr=True)
        self._began = time.monotonic()
        self._status = Status(self._text(), console=self.console) if self.console.is_terminal else None

    def __enter__(self) -> Starting:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def done(self, part: str) -> None:
        """`part` is up."""
        self.waiting.remove(part)
        if self._status is not None:
            self._status.update(self._text())
        else:
            rest = f"; {self._text()}" if self.waiting else ""
            told = f"{part}: up after {time.monotonic() - self._began:.0f} s{rest}"
            self.console.print(told, markup=False, highlight=False, soft_wrap=True)

    def _text(self) -> str:
        return f"waiting for {', '.join(self.waiting)}"
