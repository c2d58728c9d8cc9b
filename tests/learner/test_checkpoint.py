import errno
import os
from pathlib import Path

import pytest

from learner import checkpoint
from learner.checkpoint import CheckpointError

FILES = {"weights.safetensors": b"w" * 1000, "learner.json": b"{}"}


def test_a_checkpoint_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path, 10, FILES)
    assert folder == tmp_path / "step_000010" == checkpoint.latest(tmp_path)
    assert checkpoint.read(folder) == FILES


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 1_000_000):
        checkpoint.write(tmp_path, step, FILES, keep=2)
    assert [checkpoint.step_of(p) for p in checkpoint.checkpoints(tmp_path)] == [3, 1_000_000]
    assert checkpoint.latest(tmp_path / "none") is None


def test_a_step_written_again_is_replaced(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 1, FILES)
    checkpoint.write(tmp_path, 1, {"learner.json": b"new"})
    assert checkpoint.read(tmp_path / "step_000001") == {"learner.json": b"new"}


def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = checkpoint.write(tmp_path, 1, FILES)
    flushed = 0

    def full(descriptor: int) -> None:
        nonlocal flushed
        flushed += 1
        if flushed == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left.*previous checkpoint is untouched"):
        checkpoint.write(tmp_path, 2, FILES, keep=1)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == [previous.name]
    assert checkpoint.read(previous) == FILES


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_the_systems_own_disk_full_error_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_full_disk(path: Path, content: bytes) -> None:
        with open("/dev/full", "wb") as file:
            file.write(content)
            file.flush()

    monkeypatch.setattr(checkpoint, "_write_file", to_full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.write(tmp_path, 1, FILES)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_is_no_checkpoint_and_does_not_block_the_next(tmp_path: Path) -> None:
    half = tmp_path / ".writing_step_000002"
    half.mkdir()
    (half / "learner.json").write_bytes(b"{")
    (tmp_path / "step_000003").mkdir()
    assert checkpoint.latest(tmp_path) is None
    folder = checkpoint.write(tmp_path, 2, FILES)
    assert checkpoint.read(folder) == FILES and not half.exists()


def test_damage_and_other_formats_are_refused(tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path, 1, FILES)
    (folder / "weights.safetensors").write_bytes(b"w" * 999 + b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoint.read(folder)
    (folder / "manifest.json").write_text('{"format": 99, "files": {}}')
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.read(folder)
