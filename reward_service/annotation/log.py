"""The votes of one annotator as they are given: a file that is only appended to, and checked line by line.

Each line is a JSON object with its number, counted from 1, and a checksum of itself. A vote is on the disk before
`append` returns. What a crash leaves of a last line is cut off, for nobody was told that it was kept; anything else
that is not as it was written, a missing line too, is an error that names the line.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from restoration.whole_files import naming
from reward_service.annotation.votes import Vote, check_name

FOLDER, SUFFIX = "ratings", ".jsonl"
"""Where an export keeps the files of its annotators."""


class VoteLog:
    """The file of one annotator, open to be appended to by this process alone.

    Attributes:
        votes: that count, by task, the last one given last.

    Raises:
        ValueError: a name that is none; a file of another export or annotator, or a damaged one; another process
            writes to it.
        OSError: it can't be opened or read.
    """

    def __init__(self, folder: Path, export: str, annotator: str) -> None:
        self.path = folder / FOLDER / f"{check_name(annotator)}{SUFFIX}"
        self.export, self.annotator = export, annotator
        with naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+", buffering=0)
        try:
            self._lock()
            with naming(self.path):
                self._file.seek(0)
                content = self._file.read()
            rows, self._whole = _rows(self.path, content)
            self._cut()
            self._rows = rows
            self.votes = _standing(self.path, rows, export, annotator)
            with naming(self.path):
                self._sync_folder()
        except BaseException:
            self._file.close()
            raise

    def append(self, vote: Vote) -> None:
        """Keep a vote; one that was given to the same task before no longer counts.

        Raises:
            ValueError: it is another annotator's.
            OSError: it can't be written, as on a full disk. Then the file is as it was, and the vote isn't kept.
        """
        if vote.annotator != self.annotator:
            raise ValueError(f"a vote of {vote.annotator} for the file of {self.annotator}")
        self._write({"task": vote.task, "answer": vote.answer, "seconds": vote.seconds, "at": vote.at})
        self.votes.pop(vote.task, None)
        self.votes[vote.task] = vote

    def undo(self) -> Vote | None:
        """Take back the last vote that counts, and return it; None where there is none. Its task is open again.

        Raises:
            OSError: as `append`.
        """
        if not self.votes:
            return None
        task = next(reversed(self.votes))
        self._write({"undo": task})
        return self.votes.pop(task)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> VoteLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        whole = {"n": len(self._rows) + 1, "export": self.export, "annotator": self.annotator, **row}
        line = _line(whole)
        with naming(self.path):
            self._cut()  # what an earlier failure could not take back
            try:
                left = memoryview(line)
                while left:
                    left = left[self._file.write(left) :]
                os.fsync(self._file.fileno())
            except OSError:
                with suppress(OSError):
                    self._cut()
                raise
        self._rows.append(whole)
        self._whole += len(line)

    def _cut(self) -> None:
        """Leave whole lines only."""
        if os.fstat(self._file.fileno()).st_size > self._whole:
            self._file.truncate(self._whole)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise ValueError(
                f"{self.path}: another process writes the votes of {self.annotator}; close that one first"
            ) from None

    def _sync_folder(self) -> None:
        """So that a new file's name is on the disk, too."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_log(path: Path, export: str) -> list[Vote]:
    """The votes in a file of `VoteLog` that count, in the order in which they were given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another export, or damaged; with the number of the line.
    """
    rows, _ = _rows(path, path.read_bytes())
    return list(_standing(path, rows, export, None).values())


def _rows(path: Path, content: bytes) -> tuple[list[dict[str, Any]], int]:
    """The lines, checked, and the number of bytes that they have; a last line without its end is not among them."""
    whole = content.rfind(b"\n") + 1
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            sound = isinstance(row, dict) and row.get("n") == number and _line(_without_sum(row)) == line + b"\n"
        except ValueError:
            sound = False
        if not sound:
            raise ValueError(
                f"{path}:{number}: not as it was written (its number or its checksum is wrong), so that votes may be "
                "lost or changed; put the file back from a copy, or remove it from this line on and rate that again"
            )
        rows.append(_without_sum(row))
    return rows, whole


def _standing(path: Path, rows: list[dict[str, Any]], export: str, annotator: str | None) -> dict[str, Vote]:
    votes: dict[str, Vote] = {}
    for row in rows:
        where = f"{path}:{row['n']}"
        if row.get("export") != export:
            raise ValueError(f"{where}: of another export, {row.get('export')}: this one is {export}")
        if annotator is not None and row.get("annotator") != annotator:
            raise ValueError(f"{where}: a vote of {row.get('annotator')}, in the file of {annotator}")
        if "undo" in row:
            votes.pop(row["undo"], None)
            continue
        try:
            vote = Vote(row["annotator"], row["task"], row["answer"], row["seconds"], row["at"])
        except KeyError as error:
            raise ValueError(f"{where}: it has no {error}; it is no line of votes") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        votes.pop(vote.task, None)
        votes[vote.task] = vote
    return votes


def _line(row: Mapping[str, Any]) -> bytes:
    """A row with its checksum, as it stands in the file."""
    text = json.dumps(row, sort_keys=True, allow_nan=False)
    return (json.dumps({**row, "sum": f"{zlib.crc32(text.encode()):08x}"}, sort_keys=True) + "\n").encode()


def _without_sum(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "sum"}
