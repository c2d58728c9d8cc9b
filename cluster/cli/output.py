"""What the `restorl` command shows: a progress bar, tables, the summary of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.run.state import RunSummary
    from restoration.evaluate import Row


class Counter:
    """A rich progress bar a command feeds with (what, done, total); nothing away from a terminal."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bar.start()
        task = self._bar.add_task("", total=None)
        return lambda what, done, total: self._bar.update(task, description=what, completed=done, total=total)

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


def print_rows(rows: list[Row], title: str) -> None:
    """Means over the images, with their number."""
    from restoration.evaluate import mean_values

    means = mean_values(rows)
    print_table(["", *means], [["mean", *(f"{v:.4f}" for v in means.values())]], f"{len(rows)} images, {title}")


def print_table(head: list[str], rows: list[list[str]], title: str) -> None:
    """Plain columns, the same on a terminal and in a file."""
    print("\n".join([title, *table_lines(head, rows)]))


def table_lines(head: list[str], rows: list[list[str]]) -> list[str]:
    """Columns, right-aligned, with two spaces between them."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def summary_text(summary: RunSummary) -> str:
    """Held-out means before and after, time, memory, and where the report is."""
    from restoration.metrics.appearance import APPEARANCE

    lines = [f"{'':12}{'input':>10}{'base':>10}{'RL':>10}"]
    for name in (n for n in summary.rl if f"input_{n}" in summary.base and n not in APPEARANCE):
        values = (summary.base.get(f"input_{name}"), summary.base[name], summary.rl[name])
        lines.append(f"{name:12}" + "".join(" " * 10 if v is None else f"{v:10.4f}" for v in values))
    memory = f"{summary.peak_memory_mb:.0f} MB of the driver and all it started"  # on another's cluster: itself
    lines.append(f"{summary.iterations} iterations in {summary.seconds:.0f} s, peak {memory}")
    lines.append(f"report: {Path(summary.report).resolve()}")
    return "\n".join(lines)
