"""Files of a run: whole or not at all, and errors that name them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cluster.files import JsonLines, read_json_lines, write_text
from restoration.whole_files import naming


class FullDisk:
    """The file below it, of which the disk takes `room` bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken, self.room = min(len(data), self.room), max(0, self.room - len(data))
        self.file.write(data[:taken])
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_an_error_names_the_file_and_not_a_temporary_one(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'") as caught,
        naming(tmp_path / "metrics.jsonl"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError, match=r"'.*gone/run\.json'"):
        write_text(tmp_path / "gone" / "run.json", "{}")


def test_a_text_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_text(path, "old")

    def half(self: Path, text: str, **_: Any) -> None:
        self.write_bytes(text.encode()[:2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match=r"No space left on device: '.*run\.json'"):
        write_text(path, "new and longer")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_line_that_a_full_disk_takes_half_of_leaves_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with JsonLines(path) as lines:
        lines.append({"n": 1})
        lines._file, file = FullDisk(lines._file, room=5), lines._file  # type: ignore[assignment]
        with pytest.raises(OSError, match=r"No space left on device: '.*lines\.jsonl'"):
            lines.append({"n": 2}, {"n": 3})
        lines._file = file  # there is space again
        lines.append({"n": 4})
    assert path.read_text() == '{"n": 1}\n{"n": 4}\n'


def test_a_write_that_the_system_does_in_pieces_is_whole(tmp_path: Path) -> None:
    with JsonLines(tmp_path / "lines.jsonl") as lines:
        lines._file = Pieces(lines._file)  # type: ignore[assignment]
        lines.append({"text": "x" * 50})
    assert read_json_lines(tmp_path / "lines.jsonl") == [{"text": "x" * 50}]


class Pieces(FullDisk):
    def __init__(self, file: Any) -> None:
        super().__init__(file, 0)

    def write(self, data: memoryview) -> int:
        return int(self.file.write(data[:7]))


def test_a_torn_last_line_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_text('{"n": 1}\n{"n": ')  # killed while writing
    with JsonLines(path) as lines:
        lines.append({"n": 2})
    assert read_json_lines(path) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("line", ["nonsense", "3", '"text"'])
def test_a_damaged_line_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text(f'{{"n": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"lines\.jsonl:2: .*; remove the line"):
        read_json_lines(path)


def test_lines_are_dropped_in_one_step_and_the_file_is_appended_to_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with JsonLines(path) as lines:
        lines.append(*({"n": n, "x": 0.1 + n} for n in range(4)))
        before = path.read_text()
        assert lines.keep(lambda row: True) == 0 and path.read_text() == before
        assert lines.keep(lambda row: row["n"] < 2) == 2
        lines.append({"n": 9})
    assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [0, 1, 9]
    assert path.read_text().startswith("".join(before.splitlines(keepends=True)[:2]))
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
