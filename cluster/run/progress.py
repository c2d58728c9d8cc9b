"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere (a log, a Ray job)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

FIELDS = ("reward", "psnr", "staleness", "throughput")
FORMATS = {"reward": "{:.4f}", "psnr": "{:.2f} dB", "staleness": "{:.1f}", "throughput": "{:.1f}/s"}


class TrainingProgress:
    """Shows iterations out of `total`.

    Args:
        total: iterations of the whole run.
        start: iterations done before this process (a resumed run).
        console: where to write; stderr by default, so that stdout stays free for results.
        line_every_s: on something that is no terminal, at most one line in so many seconds.
        left: says how long the rest will take, or nothing; asked at every update.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        console: Console | None = None,
        line_every_s: float = 10.0,
        left: Callable[[], str] = str,
    ) -> None:
        self.total, self.start, self.done = total, start, start
        self.console = console or Console(stderr=True)
        self._line_every_s, self._last_line_s = line_every_s, -math.inf
        self._values: dict[str, float] = {}
        self._left = left
        columns = (TextColumn("[bold]iteration"), MofNCompleteColumn(), BarColumn(bar_width=None))
        self._bar = Progress(
            *columns,
            TextColumn("{task.fields[values]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total, completed=start, values="", left="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(
        self,
        iteration: int,
        reward: float | None = None,
        psnr: float | None = None,
        staleness: float | None = None,
        throughput: float | None = None,
    ) -> None:
        """Iterations done so far, and what is new of: mean reward, held-out PSNR, mean staleness, images a second."""
        new = zip(FIELDS, (reward, psnr, staleness, throughput), strict=True)
        self._values |= {name: float(value) for name, value in new if value is not None}
        shown = "  ".join(f"{n} {FORMATS[n].format(self._values[n])}" for n in FIELDS if n in self._values)
        self.done = iteration
        left = self._left()
        self._bar.update(self._task, completed=iteration, values=shown, left=left)
        now = time.monotonic()
        due = now - self._last_line_s >= self._line_every_s or iteration in (self.start + 1, self.total)
        if not self.console.is_terminal and due:
            self._last_line_s = now
            self.note("  ".join(filter(None, (f"iteration {iteration}/{self.total}", shown, left))))

    def note_beside(self, text: str) -> None:
        """A line for those who see no bar."""
        if not self.console.is_terminal:
            self.note(text)

    def note(self, text: str) -> None:
        """A line above the bar: a checkpoint, an actor that was restarted."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
