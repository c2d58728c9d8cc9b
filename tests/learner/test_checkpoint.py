import errno
import hashlib
import itertools
import json
import os
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from learner import checkpoint
from learner.checkpoint import CheckpointError, CheckpointOvertaken, Sink
from learner.tensor_file import tensor_writer

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
    opened = open

    def on_full_disk(path: Path, mode: str) -> object:
        return opened("/dev/full", mode)

    monkeypatch.setattr("builtins.open", on_full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoint.write(tmp_path, 1, FILES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_disk_that_fills_up_while_a_file_is_streamed_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a tmpfs")
    try:
        root = tmp_path / "checkpoints"
        previous = checkpoint.write(root, 1, FILES)
        large = tensor_writer({"w": torch.zeros(2, 1 << 20)})
        with pytest.raises(CheckpointError, match=r"after [34]\.\d MB: .*No space left") as error:
            checkpoint.write(root, 2, {"a.json": b"{}", "weights.safetensors": large})
        assert "there is space" in str(error.value)
        assert [p.name for p in root.iterdir()] == [previous.name] and checkpoint.read(previous) == FILES
        assert checkpoint.read(checkpoint.write(root, 3, FILES)) == FILES  # the space is free again
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_any_buffer_or_writer_is_written_and_hashed_as_bytes_are(tmp_path: Path) -> None:
    def in_pieces(sink: Sink) -> None:
        for start in range(0, len(content), 1_000_003):
            assert sink.write(content[start : start + 1_000_003]) == len(content[start : start + 1_000_003])

    content = bytes(range(256)) * 12_345
    numbers = memoryview(torch.arange(7, dtype=torch.int32).numpy())
    files = {"bytes": content, "writer": in_pieces, "buffer": memoryview(content), "numbers": numbers, "empty": b""}
    folder = checkpoint.write(tmp_path, 1, files)
    manifest = json.loads((folder / "manifest.json").read_bytes())["files"]
    for name in ("bytes", "writer", "buffer"):
        assert manifest[name] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    found = checkpoint.read(folder)
    assert [found[name] for name in files] == [content, content, content, numbers.tobytes(), b""]
    assert checkpoint.sizes(folder) == {name: len(found[name]) for name in files}


def test_streamed_tensors_are_never_held_twice(tmp_path: Path) -> None:
    tensors = {f"w{i}": torch.full((1 << 19,), float(i)) for i in range(8)}  # 2 MiB each
    tracemalloc.start()
    try:
        folder = checkpoint.write(tmp_path, 1, {"weights.safetensors": tensor_writer(tensors)})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20  # of Python's; torch copies nothing, as these are contiguous and on the CPU
    found = safetensors.torch.load(checkpoint.read(folder)["weights.safetensors"])
    assert found.keys() == tensors.keys() and all(torch.equal(found[n], t) for n, t in tensors.items())


def test_a_tensor_file_holds_every_shape_and_dtype_that_training_has() -> None:
    tensors = {
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "ünïcode": torch.randn(4, 6).t(),
        "half": torch.randn(5).bfloat16(),
        "none": torch.zeros(0, 3),
        "step": torch.arange(3, dtype=torch.int32),
        "raw": torch.arange(3, dtype=torch.uint8),
        "needs_grad": torch.nn.Parameter(torch.randn(2)),
    }
    written = bytearray()

    class Memory:
        def write(self, data: bytes | memoryview, /) -> int:
            written.extend(data)
            return len(data)

    tensor_writer(tensors)(Memory())
    found = safetensors.torch.load(bytes(written))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())
    with pytest.raises(ValueError, match="'c' is torch.complex64"):
        tensor_writer({"c": torch.zeros(2, dtype=torch.complex64)})


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    previous = checkpoint.write(tmp_path, 1, FILES)

    def interrupted(sink: Sink) -> None:
        sink.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, 2, {"weights.safetensors": interrupted})
    assert list(tmp_path.iterdir()) == [previous]


def test_protected_steps_stay_whatever_their_age(tmp_path: Path) -> None:
    def left() -> list[int]:
        return [checkpoint.step_of(p) for p in checkpoint.checkpoints(tmp_path)]

    for step in range(1, 6):
        checkpoint.write(tmp_path, step, FILES, keep=2, protect={2})
    assert left() == [2, 4, 5]
    checkpoint.write(tmp_path, 6, FILES, keep=2)
    assert left() == [5, 6]


def test_old_ones_that_cannot_be_deleted_do_not_fail_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(folder: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    checkpoint.write(tmp_path, 1, FILES)
    monkeypatch.setattr(checkpoint, "_remove", read_only)
    assert checkpoint.read(checkpoint.write(tmp_path, 2, FILES, keep=1)) == FILES


def test_some_files_are_read_and_verified_without_touching_the_others(tmp_path: Path) -> None:
    folder = checkpoint.write(tmp_path, 1, FILES)
    (folder / "weights.safetensors").write_bytes(b"damaged")
    assert checkpoint.read(folder, ["learner.json"]) == {"learner.json": b"{}"}
    with pytest.raises(CheckpointError, match="weights.safetensors is damaged"):
        checkpoint.read(folder, ["weights.safetensors"])
    with pytest.raises(CheckpointError, match="holds no average.safetensors, only weights.safetensors, learner.json"):
        checkpoint.read(folder, ["average.safetensors"])


@pytest.mark.parametrize("name", ["../outside", "a/b", "", "..", "manifest.json"])
def test_no_file_of_a_checkpoint_lies_outside_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no name of a file"):
        checkpoint.write(tmp_path, 1, {name: b""})
    folder = checkpoint.write(tmp_path, 1, FILES)
    entry = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": {name: entry}}))
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        checkpoint.read(folder)


def test_an_interrupted_write_is_no_checkpoint_and_does_not_block_the_next(tmp_path: Path) -> None:
    half = tmp_path / ".writing_step_000002"
    half.mkdir()
    (half / "learner.json").write_bytes(b"{")
    (tmp_path / ".writing_step_000001").mkdir()  # of a killed writer, whose step does not come again
    for odd in ("step_000003", "step_old"):
        (tmp_path / odd).mkdir()
    (tmp_path / "step_old" / "manifest.json").write_text("{}")
    assert checkpoint.latest(tmp_path) is None
    folder = checkpoint.write(tmp_path, 2, FILES)
    assert checkpoint.read(folder) == FILES and list(tmp_path.glob(".*")) == []


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


def epochs(first: int = 1) -> Callable[[], int]:
    return itertools.count(first).__next__


def test_the_writer_of_an_earlier_epoch_is_refused_and_leaves_what_the_later_one_has_written(tmp_path: Path) -> None:
    """As a rank that was cut off, believed dead, and wakes."""
    begin = epochs()
    old = checkpoint.take_over(tmp_path, begin)
    checkpoint.write(tmp_path, 1, FILES, epoch=old)
    new = checkpoint.take_over(tmp_path, begin)
    newer = {"learner.json": b"of the later epoch"}
    for step in (2, 3):
        checkpoint.write(tmp_path, step, newer, epoch=new)
    for step in (1, 3, 9):
        with pytest.raises(CheckpointOvertaken, match=rf"in epoch {new}; this one, of epoch {old}, may write nothing"):
            checkpoint.write(tmp_path, step, FILES, keep=1, epoch=old)
    with pytest.raises(CheckpointOvertaken):
        checkpoint.write(tmp_path, 9, FILES)  # of a writer that knows of no epoch
    assert [checkpoint.step_of(p) for p in checkpoint.checkpoints(tmp_path)] == [1, 2, 3]
    assert checkpoint.read(tmp_path / "step_000003") == newer
    assert json.loads((tmp_path / "step_000003" / "manifest.json").read_bytes())["epoch"] == new


@pytest.mark.parametrize(
    "when",
    ["while a file is written", "before the last look", "behind the last look", "over one that stands"],
)
def test_a_writer_that_is_overtaken_in_the_middle_finishes_nothing(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = epochs()
    old = checkpoint.take_over(tmp_path, begin)
    checkpoint.write(tmp_path, 2 if when.endswith("stands") else 1, FILES, epoch=old)
    begun, later = list[bool](), list[int]()

    def successor() -> None:
        begun.append(True)
        later.append(checkpoint.take_over(tmp_path, begin))
        checkpoint.write(tmp_path, 2, {"learner.json": b"later"}, epoch=later[0])

    def overtaken(sink: Sink) -> None:
        sink.write(b"half")
        if when == "while a file is written":
            successor()

    rename, require = os.rename, checkpoint.require_epoch
    looks: list[int] = []

    def renamed(source: Path, target: Path) -> None:
        if when.startswith(("behind", "over")) and not begun and source.name.startswith((".writing", "step_")):
            successor()
        rename(source, target)

    def required(root: Path, epoch: int) -> None:
        looks.append(epoch)
        if when == "before the last look" and len(looks) == 2:
            successor()
        require(root, epoch)

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(checkpoint, "require_epoch", required)
    with pytest.raises(CheckpointOvertaken):
        checkpoint.write(tmp_path, 2, {"weights.safetensors": overtaken}, epoch=old)
    monkeypatch.undo()
    assert checkpoint.read(tmp_path / "step_000002") == {"learner.json": b"later"}
    checkpoint.write(tmp_path, 3, FILES, epoch=later[0])
    assert list(tmp_path.glob(".*")) == []


def test_a_writer_that_wakes_does_not_take_away_what_its_successor_is_writing(tmp_path: Path) -> None:
    begin = epochs()
    old = checkpoint.take_over(tmp_path, begin)
    new = checkpoint.take_over(tmp_path, begin)

    def meanwhile(sink: Sink) -> None:
        sink.write(b"first half, ")
        checkpoint._sweep(tmp_path, old)
        with pytest.raises(CheckpointOvertaken):
            checkpoint.write(tmp_path, 2, FILES, epoch=old)
        sink.write(b"second half")

    folder = checkpoint.write(tmp_path, 2, {"weights.safetensors": meanwhile}, epoch=new)
    assert checkpoint.read(folder) == {"weights.safetensors": b"first half, second half"}


def test_a_store_that_counts_its_epochs_from_one_again_does_not_lock_its_run_out(tmp_path: Path) -> None:
    assert checkpoint.take_over(tmp_path, epochs(7)) == 7
    assert checkpoint.take_over(tmp_path, epochs()) == 8 == checkpoint.current_epoch(tmp_path)
    checkpoint.write(tmp_path, 1, FILES, epoch=8)
    with pytest.raises(ValueError, match="has seen epoch 8, and begin_epoch gives no later one"):
        checkpoint.take_over(tmp_path, lambda: 1)


def test_a_folder_that_was_removed_while_the_run_went_on_is_not_made_again(tmp_path: Path) -> None:
    epoch = checkpoint.take_over(tmp_path / "run" / "checkpoints", epochs())
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.write(tmp_path / "run" / "checkpoints", 1, FILES, epoch=epoch)
    assert [p.name for p in tmp_path.iterdir()] == ["elsewhere"]


def test_what_stands_where_a_checkpoint_belongs_stays_when_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = checkpoint.write(tmp_path, 1, FILES), os.rename

    def refused(source: Path, target: Path) -> None:
        if source.name.startswith(".writing"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr(os, "rename", refused)
    with pytest.raises(CheckpointError, match="Input/output error"):
        checkpoint.write(tmp_path, 1, {"learner.json": b"new"})
    assert checkpoint.read(folder) == FILES and [p.name for p in tmp_path.iterdir()] == [folder.name]


def test_what_a_damaged_checkpoint_advises_makes_the_one_before_it_the_latest(tmp_path: Path) -> None:
    for step in (2, 4):
        checkpoint.write(tmp_path / "checkpoints", step, FILES)
    root = tmp_path / "checkpoints"
    (root / "step_000004" / "weights.safetensors").write_bytes(b"x")
    advice = rf"move the folder step_000004 out of {root}: iteration 2, the one before, is then the latest"
    with pytest.raises(CheckpointError, match=advice):
        checkpoint.read(root / "step_000004")
    (root / "step_000004").rename(tmp_path / "step_000004")
    found = checkpoint.latest(root)
    assert found is not None and checkpoint.read(found) == FILES
    (found / "learner.json").unlink()
    with pytest.raises(CheckpointError, match="no complete checkpoint.*there is none before it"):
        checkpoint.read(found)


def test_a_writer_that_is_overtaken_behind_its_last_look_is_not_the_latest_for_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor chooses what to go on from right after it has taken over."""
    begin, rename = epochs(), os.rename
    old, seen = checkpoint.take_over(tmp_path, begin), list[Path | None]()

    def renamed(source: Path, target: Path) -> None:
        if not seen:
            seen.append(None)
            checkpoint.take_over(tmp_path, begin)
            seen.append(checkpoint.latest(tmp_path))
        rename(source, target)

    monkeypatch.setattr(os, "rename", renamed)
    with pytest.raises(CheckpointOvertaken):
        checkpoint.write(tmp_path, 1, FILES, epoch=old)
    assert seen == [None, None] and checkpoint.latest(tmp_path) is None


def test_a_writer_that_is_overtaken_is_refused_before_it_writes_anything(tmp_path: Path) -> None:
    begin = epochs()
    old = checkpoint.take_over(tmp_path, begin)
    checkpoint.take_over(tmp_path, begin)
    asked: list[Sink] = []
    with pytest.raises(CheckpointOvertaken):
        checkpoint.write(tmp_path, 1, {"weights.safetensors": asked.append}, epoch=old)
    assert asked == []
