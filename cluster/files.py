"""How the files of a run are written: whole or not at all, and an error says which file it is about."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from restoration.whole_files import naming, written_whole

IDENTITY_FILE, QUARANTINE_FILE, LEDGER_FILE = "run.json", "quarantine.jsonl", "ledger.json"  # of a run, in its folder
FINISHED = "finished"  # in run.json: the iterations after which the run was complete, its report included, or null
Row = dict[str, Any]


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; readers, and other writers of the same file, meet the old content or the new one, whole.

    Raises:
        OSError: it can't be written; names `path`, which is as it was.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json_lines(path: Path, needs: Sequence[str] = ()) -> list[Row]:
    """The objects of a file of `JsonLines`; a torn last line, which a crash leaves, is left out.

    Args:
        needs: keys that each has.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that isn't JSON, or lacks a key, with its number.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().decode(errors="replace").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON ({error.msg}); remove the line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: {line.strip()!r} is no JSON object; remove the line")
        if missing := [key for key in needs if key not in row]:
            raise ValueError(f"{path}:{number}: it has no {missing[0]!r}; remove the line")
        rows.append(row)
    return rows


class JsonLines:
    """A file with one JSON object a line, which is appended to and always ends with a whole line.

    A torn last line, left by a crash, is cut off on opening; of a line that can't be written nothing stays.

    Raises:
        OSError: the file can't be opened or written; every method's error names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered, so that what could not be written isn't tried again, and torn, when the file is closed.
            self._file = path.open("ab+", buffering=0)
            self._cut_torn_line()

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Write lines, handed to the operating system before this returns.

        Raises:
            ValueError: a value JSON has no form for.
        """
        left = memoryview("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode())
        with naming(self.path):
            whole = os.fstat(self._file.fileno()).st_size
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                with suppress(OSError):
                    self._file.truncate(whole)
                raise

    def keep(self, wanted: Callable[[Row], bool]) -> int:
        """Drop the lines that are not `wanted`; returns how many.

        Raises:
            ValueError: as `read_json_lines`.
        """
        rows = read_json_lines(self.path)
        kept = [row for row in rows if wanted(row)]
        if len(kept) < len(rows):
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
            self._file.close()
            with naming(self.path):
                self._file = self.path.open("ab+", buffering=0)
        return len(rows) - len(kept)

    def close(self) -> None:
        with naming(self.path):
            self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut_torn_line(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        if (whole := content.rfind(b"\n") + 1) < len(content):
            self._file.truncate(whole)
