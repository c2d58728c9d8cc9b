"""Checkpoints: a folder appears complete or not at all, and a full disk leaves the previous one in place.

A checkpoint is a few named files (safetensors and JSON, nothing that needs unpickling) and `manifest.json` with their
sizes and SHA-256, written last. The folder is written under a hidden temporary name, flushed, and renamed. Contents
are hashed while they are written, piece by piece, so nothing is held in memory a second time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

MANIFEST = "manifest.json"
FORMAT = 1
_PREFIX = "step_"
_TEMPORARY = ".writing_"
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


def write(root: Path, step: int, files: Mapping[str, Content], keep: int = 3, protect: Collection[int] = ()) -> Path:
    """Write `files` as checkpoint `step` below `root`, then delete all but the newest `keep`; returns its folder.

    Writing a step that exists replaces it. Steps in `protect` are never deleted, and don't count as kept.

    Raises:
        CheckpointError: disk full or not writable; nothing of this checkpoint is left behind.
        ValueError: `keep` below 1, or a file name that is a path.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep={keep}: at least 1")
    for name in files:
        _check_name(name)
    final, temporary = root / f"{_PREFIX}{step:06d}", root / f"{_TEMPORARY}{_PREFIX}{step:06d}"
    written = [0]
    try:
        root.mkdir(parents=True, exist_ok=True)
        for left in root.glob(f"{_TEMPORARY}*"):  # of writers that were killed
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        entries = {}
        for name, content in files.items():
            size, digest = _write_file(temporary / name, content, written)
            entries[name] = {"bytes": size, "sha256": digest}
        manifest = {"format": FORMAT, "step": step, "files": entries}
        _write_file(temporary / MANIFEST, json.dumps(manifest, indent=1).encode(), written)
        _flush_folder(temporary)
        if final.exists():
            _remove(final)
        os.replace(temporary, final)
        _flush_folder(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"checkpoint {step} can't be written to {root}, after {written[0] / 1e6:.1f} MB: {error}; the previous "
            "checkpoint is untouched: free space or choose another run folder, then resume"
        ) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
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
            raise CheckpointError(f"{folder} holds no {name}, only {', '.join(entries)}; resume from another one")
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise _incomplete(folder, error) from error
        if hashlib.sha256(content).hexdigest() != entries[name]["sha256"]:
            raise CheckpointError(f"{folder / name} is damaged (its SHA-256 differs); resume from an older checkpoint")
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
    return CheckpointError(f"{folder} is no complete checkpoint: {error}; resume from another one")


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
