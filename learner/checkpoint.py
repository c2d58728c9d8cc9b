"""Checkpoints: a folder appears complete or not at all, and a full disk leaves the previous one in place.

A checkpoint is a few named files (safetensors and JSON, nothing that needs unpickling) and `manifest.json` with their
sizes and SHA-256, written last. The folder is written under a hidden temporary name, flushed, and renamed. Contents
are hashed while they are written, piece by piece, so nothing is held in memory a second time.

Fencing: whoever takes a run over (`take_over`) leaves its epoch beside the checkpoints, and the writer of an earlier
one, which may wake up long after it was believed dead, is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

MANIFEST = "manifest.json"
FORMAT = 1
_PREFIX = "step_"
_TEMPORARY = ".writing_"  # and the writer's epoch
_GONE = ".gone_"
_EPOCH = "epoch_"
_PIECE = 1 << 20  # bytes written and hashed at a time: what was just copied to the kernel is hashed from the cache


class Sink(Protocol):
    """What a writer writes to."""

    def write(self, data: bytes | memoryview, /) -> int:
        """Append all of `data`; returns its size in bytes."""
        ...


Content = bytes | memoryview | Callable[[Sink], None]
"""A file's content, or what writes it; a writer may be called in any thread, once."""


class CheckpointError(RuntimeError):
    """A checkpoint can't be written (then the previous one stays) or read."""


class CheckpointOvertaken(CheckpointError):
    """The run goes on elsewhere, in a later epoch: this writer must stop."""


def take_over(root: Path, begin_epoch: Callable[[], int]) -> int:
    """Begin an epoch and return it: from here on writers of earlier ones are refused.

    What they have begun goes, so that none can be finished behind the check that let it pass.

    Args:
        begin_epoch: gives the next epoch, one higher at each call. It is asked until it is above all that have written
            here: a store that has lost its data counts from 1 again.

    Raises:
        CheckpointError: the folder can't be written to; or whatever `begin_epoch` raises.
    """
    recorded = current_epoch(root)
    epoch = next((e for e in (begin_epoch() for _ in range(recorded + 1)) if e > recorded), recorded)
    if epoch <= recorded:
        raise ValueError(f"{root} has seen epoch {recorded}, and begin_epoch gives no later one")
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{_EPOCH}{epoch:06d}").touch()
        _flush_folder(root)
        _sweep(root, epoch)
        for earlier in _epochs(root):
            if earlier < epoch:
                (root / f"{_EPOCH}{earlier:06d}").unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"{root} can't be written to: {error}; see that it can") from error
    return epoch


def current_epoch(root: Path) -> int:
    """The epoch that writes here; 0 before the first `take_over`."""
    return max(_epochs(root), default=0)


def require_epoch(root: Path, epoch: int) -> None:
    """Raises:
    CheckpointOvertaken: a later epoch writes here.
    """
    if (current := current_epoch(root)) > epoch:
        raise CheckpointOvertaken(
            f"{root.parent}: the run goes on in another process, in epoch {current}; this one, of epoch {epoch}, may "
            "write nothing there any more"
        )


def write(
    root: Path,
    step: int,
    files: Mapping[str, Content],
    keep: int = 3,
    protect: Collection[int] = (),
    epoch: int = 0,
) -> Path:
    """Write `files` as checkpoint `step` below `root`, then delete all but the newest `keep`; returns its folder.

    Writing a step that exists replaces it. Steps in `protect` are never deleted, and don't count as kept.
    One writer at a time: what another has not finished is taken for the leftovers of one that was killed, and goes,
    unless it is of a later epoch.

    Args:
        epoch: of the writer, see `take_over`.

    Raises:
        CheckpointOvertaken: it is over; what the later one has written is untouched.
        CheckpointError: disk full or not writable; nothing of this checkpoint is left behind.
        ValueError: `keep` below 1, or a file name that is a path.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep={keep}: at least 1")
    for name in files:
        _check_name(name)
    final, temporary = root / f"{_PREFIX}{step:06d}", root / f"{_TEMPORARY}{epoch}_{step:06d}"
    written = [0]
    try:
        if not epoch:  # else `take_over` has made it, and that it is gone must be told
            root.mkdir(parents=True, exist_ok=True)
        require_epoch(root, epoch)  # before much is written
        _sweep(root, epoch)
        temporary.mkdir()
        entries = {}
        for name, content in files.items():
            size, digest = _write_file(temporary / name, content, written)
            entries[name] = {"bytes": size, "sha256": digest}
        manifest = {"format": FORMAT, "step": step, "epoch": epoch, "files": entries}
        _write_file(temporary / MANIFEST, json.dumps(manifest, indent=1).encode(), written)
        _flush_folder(temporary)
        require_epoch(root, epoch)
        _put_in_place(temporary, final)
        _flush_folder(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        require_epoch(root, epoch)  # which takes away what this one has begun
        raise CheckpointError(
            f"checkpoint {step} can't be written to {root}, after {written[0] / 1e6:.1f} MB: {error}; the previous "
            "checkpoint is untouched: see that there is space and that it can be written to"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if current_epoch(root) > epoch:
        return final  # which old ones go is the later one's business
    for old in [c for c in checkpoints(root) if step_of(c) not in protect][:-keep]:
        if old != final:
            # This checkpoint is safe already; what can't be deleted is tried again after the next one.
            with contextlib.suppress(OSError):
                _remove(old)
    return final


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints below `root`, oldest first; leftovers of an interrupted write are not among them."""
    if not root.is_dir():
        return []
    named = (p for p in root.iterdir() if p.name.removeprefix(_PREFIX).isdecimal() and p.name.startswith(_PREFIX))
    return sorted((p for p in named if (p / MANIFEST).is_file()), key=step_of)


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint below `root`, or None."""
    found = checkpoints(root)
    return found[-1] if found else None


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def sizes(folder: Path) -> dict[str, int]:
    """Names and sizes in bytes of a checkpoint's files, by its manifest.

    Raises:
        CheckpointError: no checkpoint, or another format.
    """
    return {name: entry["bytes"] for name, entry in _manifest(folder).items()}


def read(folder: Path, names: Collection[str] | None = None) -> dict[str, bytes]:
    """The files `names` of a checkpoint, all by default, verified against its manifest; no other file is touched.

    Raises:
        CheckpointError: no checkpoint, another format, or a file missing or changed.
    """
    entries = _manifest(folder)
    files = {}
    for name in entries if names is None else names:
        if name not in entries:
            raise CheckpointError(f"{folder} holds no {name}, only {', '.join(entries)}; {_advice(folder)}")
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise _incomplete(folder, error) from error
        if hashlib.sha256(content).hexdigest() != entries[name]["sha256"]:
            raise CheckpointError(f"{folder / name} is damaged (its SHA-256 differs); {_advice(folder)}")
        files[name] = content
    return files


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says of each file."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        found = manifest["format"]
        entries = {
            name: {"bytes": int(e["bytes"]), "sha256": str(e["sha256"])} for name, e in manifest["files"].items()
        }
        for name in entries:
            _check_name(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _incomplete(folder, error) from error
    if found != FORMAT:
        raise CheckpointError(f"{folder} has checkpoint format {found}, this program reads {FORMAT}")
    return entries


def _incomplete(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder} is no complete checkpoint: {error}; {_advice(folder)}")


def _advice(folder: Path) -> str:
    """What makes another checkpoint the latest, which is the one that a run goes on from."""
    before = [step_of(c) for c in checkpoints(folder.parent) if c.name < folder.name]
    there = f"iteration {before[-1]}, the one before, is then the latest" if before else "there is none before it"
    return f"move the folder {folder.name} out of {folder.parent}: {there}"


def _epochs(root: Path) -> list[int]:
    return [int(n) for p in root.glob(f"{_EPOCH}*") if (n := p.name.removeprefix(_EPOCH)).isdecimal()]


def _sweep(root: Path, epoch: int) -> None:
    """Take away what writers of this epoch and of earlier ones have not finished."""
    for left in root.glob(f"{_TEMPORARY}*"):
        of = left.name.removeprefix(_TEMPORARY).split("_")[0]
        if not of.isdecimal() or int(of) <= epoch:
            # Under another name first: its writer, if it lives, finds it whole or not at all.
            with contextlib.suppress(OSError):
                os.rename(left, root / f"{_GONE}{uuid.uuid4().hex}")
    for left in root.glob(f"{_GONE}*"):
        shutil.rmtree(left, ignore_errors=True)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename; what stands there stays if that fails."""
    aside = final.with_name(f"{_GONE}{uuid.uuid4().hex}")
    if final.exists():
        os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        if aside.exists():
            os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _check_name(name: str) -> None:
    if name in ("", ".", "..", MANIFEST) or Path(name).name != name:
        raise ValueError(f"checkpoint: {name!r} is no name of a file in it")


class _HashedFile:
    """Hashes what it appends to a file."""

    def __init__(self, file: BinaryIO, written: list[int]) -> None:
        self._file, self._written = file, written
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview, /) -> int:
        whole = memoryview(data).cast("B")
        for start in range(0, len(whole), _PIECE):
            piece = whole[start : start + _PIECE]
            self._file.write(piece)
            self.digest.update(piece)
            self._written[0] += len(piece)
        self.size += len(whole)
        return len(whole)


def _write_file(path: Path, content: Content, written: list[int]) -> tuple[int, str]:
    """Write, hash and flush; returns size and SHA-256. `written[0]` grows by what was written, also on failure."""
    with open(path, "wb") as file:
        hashed = _HashedFile(file, written)
        if callable(content):
            content(hashed)
        else:
            hashed.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashed.size, hashed.digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    # Its manifest goes first: a removal that is interrupted leaves no checkpoint that looks complete.
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
