"""What the `restorl` command shows: a progress bar, tables, the summary of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def print_rows(rows: list[Row], title: str, scenes: dict[str, float] | None = None) -> None:
    """Means over the images that have the figure, with their number, and what is missing of which, with its reason.

    Args:
        scenes: the means over scenes, which some fields report besides.
    """
    from restoration.evaluate import counts, mean_values

    means, having = mean_values(rows), counts(rows)
    lines = [["mean", *("-" if math.isnan(v) else f"{v:.4f}" for v in means.values())]]
    if scenes is not None:
        lines.append(["of scenes", *("-" if math.isnan(v) else f"{v:.4f}" for v in scenes.values())])
    if any(count < len(rows) for count in having.values()):
        lines.append(["of", *map(str, having.values())])
    print_table(["", *means], lines, f"{len(rows)} images, {title}")
    if missing := missing_lines(rows):
        incomplete = sum(bool(row.missing) for row in rows)
        print("\n".join([f"{incomplete} of {len(rows)} images lack figures, which the means leave out:", *missing]))


def missing_lines(rows: list[Row]) -> list[str]:
    """One line for each reason and picture."""
    from restoration.figures import PICTURE

    lines = []
    for row in rows:
        for reason in dict.fromkeys(row.missing.values()):
            names = [name for name, why in row.missing.items() if why == reason]
            lines.append(f"  {reason}" if names == [PICTURE] else f"  {', '.join(names)} of {row.image_id}: {reason}")
    return lines


@contextmanager
def partial_csv(path: Path | None, rows: list[Row]) -> Iterator[None]:
    """Where what is in here ends early, by an error or Ctrl-C, the `rows` that it has made are kept beside `path`."""
    try:
        yield
    except BaseException:
        if path is not None and rows:
            from cluster.cli.errors import say
            from restoration.evaluate import write_csv

            kept = path.with_name(f"{path.stem}.partial{path.suffix}")
            try:
                write_csv(kept, rows)
                say(f"{len(rows)} images were measured before the end: {kept}")
            except OSError as error:  # which must not hide why it ends
                say(f"{len(rows)} images were measured before the end, which can't be kept: {kept}: {error}")
        raise


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
    made = f"report: {summary.report.resolve()}" if summary.report else f"no report; restorl report {summary.folder}"
    lines.append(made)
    return "\n".join(lines)
