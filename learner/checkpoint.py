"""Checkpoints: a folder appears complete or not at all, and a full disk leaves the previous one in place.

A checkpoint is a few named files (safetensors and JSON, nothing that needs unpickling) and `manifest.json` with their
sizes and SHA-256, written last. The folder is written under a hidden temporary name, flushed, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

MANIFEST = "manifest.json"
FORMAT = 1
_PREFIX = "step_"
_TEMPORARY = ".writing_"


class CheckpointError(RuntimeError):
    """A checkpoint can't be written (then the previous one stays) or read."""


def write(root: Path, step: int, files: Mapping[str, bytes], keep: int = 3) -> Path:
    """Write `files` as checkpoint `step` below `root`, then delete all but the newest `keep`; returns its folder.

    Writing a step that exists replaces it.

    Raises:
        CheckpointError: disk full or not writable; nothing of this checkpoint is left behind.
    """
    if keep < 1:
        raise ValueError(f"checkpoint.keep={keep}: at least 1")
    final, temporary = root / f"{_PREFIX}{step:06d}", root / f"{_TEMPORARY}{_PREFIX}{step:06d}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, content in files.items():
            _write_file(temporary / name, content)
        entries = {n: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in files.items()}
        manifest = {"format": FORMAT, "step": step, "files": entries}
        _write_file(temporary / MANIFEST, json.dumps(manifest, indent=1).encode())
        _flush_folder(temporary)
        if final.exists():
            _remove(final)
        os.replace(temporary, final)
        _flush_folder(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        size = sum(map(len, files.values()))
        raise CheckpointError(
            f"checkpoint {step} ({size / 1e6:.1f} MB) can't be written to {root}: {error}; the previous checkpoint is "
            "untouched: free space or choose another run folder, then resume"
        ) from error
    for old in checkpoints(root)[:-keep]:
        if old != final:
            _remove(old)
    return final


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints below `root`, oldest first; leftovers of an interrupted write are not among them."""
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if p.name.startswith(_PREFIX) and (p / MANIFEST).is_file()]
    return sorted(found, key=step_of)


def latest(root: Path) -> Path | None:
    """The newest complete checkpoint below `root`, or None."""
    found = checkpoints(root)
    return found[-1] if found else None


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix(_PREFIX))


def read(folder: Path) -> dict[str, bytes]:
    """All files of a checkpoint, verified against its manifest.

    Raises:
        CheckpointError: no checkpoint, another format, or a file missing or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        found = manifest["format"]
        files = {name: (folder / name).read_bytes() for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is no complete checkpoint: {error}; resume from another one") from error
    if found != FORMAT:
        raise CheckpointError(f"{folder} has checkpoint format {found}, this program reads {FORMAT}")
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest["files"][name]["sha256"]:
            raise CheckpointError(f"{folder / name} is damaged (its SHA-256 differs); resume from an older checkpoint")
    return files


def _write_file(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


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
