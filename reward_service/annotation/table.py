"""Votes as a plain CSV table: export, annotator, task, answer, and where known seconds and at."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from restoration.whole_files import written_whole
from reward_service.annotation.manifest import Manifest
from reward_service.annotation.votes import BEST, LEVELS, SIDES, Vote

COLUMNS = ("export", "annotator", "task", "answer", "seconds", "at")
NEEDED = COLUMNS[:4]


def write_table(path: Path, manifest: Manifest, votes: Iterable[Vote]) -> Path:
    """One line a vote; the file appears whole.

    Raises:
        OSError: it can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for vote in votes:
            times = ["" if value is None else value for value in (vote.seconds, vote.at)]
            writer.writerow([manifest.export, vote.annotator, vote.task, vote.answer, *times])
    return path


def read_table(path: Path, manifest: Manifest) -> list[Vote]:
    """Votes of a table, as `write_table` writes it or a spreadsheet does; an answer may be a level's word.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a column is missing, the votes are of another export, or a line is no vote on it; names the line.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in NEEDED if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path}: it has no column {missing[0]}; a table of votes has {', '.join(NEEDED)}")
        votes = []
        for row in reader:
            try:
                manifest.check_export(row["export"])
                votes.append(manifest.check(_vote(row)))
            except ValueError as error:
                raise ValueError(f"{path}:{reader.line_num}: {error}") from None
    return votes


def answer_of(text: str) -> int | str:
    """A level, by its number or its word, or a side.

    Raises:
        ValueError: neither.
    """
    plain = text.strip().lower()
    if plain in LEVELS:
        return BEST - LEVELS.index(plain)
    if plain in SIDES:
        return plain
    if plain.isdecimal() and 1 <= int(plain) <= BEST:
        return int(plain)
    raise ValueError(
        f"the answer {text!r} is unknown; choose 1 to {BEST}, {', '.join(LEVELS)}, or of a pair {', '.join(SIDES)}"
    )


def _vote(row: dict[str, str | None]) -> Vote:
    times = []
    for name in ("seconds", "at"):
        text = row.get(name) or ""
        try:
            times.append(float(text) if text else None)
        except ValueError:
            raise ValueError(f"{name}={text!r} is no number") from None
    return Vote(row["annotator"] or "", row["task"] or "", answer_of(row["answer"] or ""), *times)
