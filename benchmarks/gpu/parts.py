"""Parts of a measurement in order of value, run while they fit into the time; what was found is always on disk."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import write
from restoration.trouble import is_memory

Row = dict[str, Any]
"""One measurement by names: numbers, texts, truth values."""


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        seconds: what it takes, about, on a GPU of the kind that is aimed at; it is skipped where less is left.
        rows: measures, and yields each row as soon as it is known.
    """

    name: str
    seconds: float
    rows: Callable[[], Iterator[Row]]


class TimeIsUp(BaseException):
    """Raised in the middle of a part. No `Exception`, which a library may catch."""


class Report:
    """What was found, written after every row as JSON and, for readers, as tables.

    Args:
        folder, stem: of STEM.json and STEM.md.
        about: of the machine and the settings.
    """

    def __init__(self, folder: Path, stem: str, about: Row) -> None:
        self.json, self.markdown = folder / f"{stem}.json", folder / f"{stem}.md"
        self.about = about
        self.parts: dict[str, Row] = {}
        self.write()

    def begin(self, part: Part) -> Row:
        self.parts[part.name] = {"state": "running", "estimate_s": part.seconds, "rows": []}
        self.write()
        return self.parts[part.name]

    def write(self) -> None:
        """Each file is the old or the new one whole, also of a process that is killed here."""
        json_part, markdown_part = (file.with_name(file.name + ".part") for file in (self.json, self.markdown))
        write(json_part, {**self.about, "parts": self.parts})
        markdown_part.write_text(tables(self.about, self.parts))
        os.replace(json_part, self.json)
        os.replace(markdown_part, self.markdown)


def run(parts: Sequence[Part], until: float, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
    """Run what fits, in order.

    A part that fails leaves its reason and what it had found. One that is still at it at the end is stopped there.

    Args:
        until: the end, by `clock`.
    """
    for part in parts:
        left, found = until - clock(), report.begin(part)
        if part.seconds > left:
            found |= {"state": "skipped", "reason": f"takes about {part.seconds:.0f} s, {max(0, left):.0f} s were left"}
            report.write()
            continue
        began = clock()
        state = _run(part, left, found["rows"], report)
        found |= {**state, "took_s": round(clock() - began, 2)}
        report.write()
        _give_back()


def _run(part: Part, left: float, rows: list[Row], report: Report) -> Row:
    """How it ended. The error itself ends here, too, and with it what its frames hold on the device."""
    try:
        with _alarm(left):
            for row in part.rows():
                rows.append(row)
                report.write()
                print(f"{part.name}: {json.dumps(row)}", flush=True)
    except TimeIsUp:
        return {"state": "cut off", "reason": "the time was up"}
    except Exception as error:
        return {"state": "failed", "reason": reason_of(error)}
    return {"state": "done"}


def reason_of(error: BaseException) -> str:
    """One line."""
    if is_memory(error):
        return "out of memory"
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def measured(about: Row, work: Callable[[], Row]) -> Row:
    """`about` and what `work` finds, or that memory ran out, after which smaller rows may go on."""
    try:
        return about | work()
    except (RuntimeError, MemoryError) as error:
        if not is_memory(error):
            raise
    _give_back()
    return about | {"failed": "out of memory"}


def _give_back() -> None:
    """What a GPU holds that nothing names any more."""
    if torch.cuda.is_available():
        gc.collect()
        with contextlib.suppress(RuntimeError):  # after some errors CUDA does nothing more in this process
            torch.cuda.empty_cache()


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises TimeIsUp inside after so many, in the main thread of a process."""

    def ring(*_: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def tables(about: Row, parts: dict[str, Row]) -> str:
    """All of it in Markdown: a table a part, of rows with the same names."""
    lines = [f"# {about['card']}", "", ", ".join(f"{k} {_cell(v)}" for k, v in about.items() if k != "card"), ""]
    for name, part in parts.items():
        state = f"{part['state']}: {part['reason']}" if "reason" in part else part["state"]
        took = f", {_cell(part['took_s'])} s" if "took_s" in part else ""
        lines += [f"## {name}", "", f"{state}{took} (estimate {_cell(part['estimate_s'])} s)", ""]
        shown: tuple[str, ...] = ()
        for row in part["rows"]:
            if tuple(row) != shown:
                lines += [""] if shown else []
                lines += [f"| {' | '.join(row)} |", "|" + "-|" * len(row)]
                shown = tuple(row)
            lines.append(f"| {' | '.join(map(_cell, row.values()))} |")
        lines += [""] if part["rows"] else []
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return str(value) if isinstance(value, int) or not math.isfinite(value) else f"{value:.4g}"
