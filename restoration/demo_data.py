"""Demo sets: tiles of shipped photographs, degraded with a seed, in the folder layout of public sets."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from restoration import degradations
from restoration.datasets.paired import DataError
from restoration.degradations import KINDS, Kind, degrade, seeded_rng
from restoration.image_files import list_images
from restoration.images import read_image, write_image

MANIFEST = "manifest.json"
Pixels: TypeAlias = NDArray[np.float32]
# Source folder of photographs, then the split's folder in sets of deraining and deblurring and in LOL.
_SPLITS = (("train", "train", "Train"), ("heldout", "test", "Test"), ("unseen", "unseen", "Unseen"))
_OPTIONAL = "unseen"


@dataclass(frozen=True)
class Tile:
    """A square cut of a photograph; `name` attributes it to its source."""

    name: str
    photo: str
    y: int
    x: int
    side: int


def make_demo(
    photos: Path,
    out: Path,
    tasks: Sequence[Kind] = KINDS,
    seed: int = 0,
    crop: int = 128,
    *,
    train_count: int = 200,
    test_count: int = 48,
    severity: tuple[float, float] = (0.3, 1.0),
    min_gradient: float = 0.02,
) -> dict[str, Path]:
    """Write `<out>/<task>/{train,test,unseen}/{input,target}/<photo>_<tile>.png` and return the folder of each task.

    Low light takes the layout of LOL, `{Train,Test,Unseen}/{Low,Normal}`; `datasets.paired.discover` opens both. The
    tiles come from `<photos>/train`, `<photos>/heldout` and, where it is there, `<photos>/unseen` (for figures on which
    no choice was made), from each photograph in turn. A task's folder is replaced as a whole, and left alone when its
    manifest says that nothing changed.

    Args:
        train_count, test_count: tiles wanted, as many unseen as test ones; fewer come when the photographs hold no more
            textured ones.
        severity: range of the severity, drawn uniformly for each tile.
        min_gradient: a tile's mean absolute grey difference between neighbours (both directions added, of 1) must
            be above it; sky and blur teach a restorer nothing and tell a scorer nothing.

    Raises:
        FileNotFoundError: no folder of photographs.
        DataError: no photograph or no tile; a task's folder that this function didn't write.
        ValueError: an unknown task, or counts, crop or severity out of range.
        ImageError: a photograph that can't be read, a tile that can't be written.
    """
    photos, out = Path(photos), Path(out)
    _check(tasks, crop, train_count, test_count, severity)
    parameters: dict[str, Any] = {
        "seed": seed,
        "crop": crop,
        "train_count": train_count,
        "test_count": test_count,
        "severity": list(severity),
        "min_gradient": min_gradient,
        "photos": {p.relative_to(photos).as_posix(): digest(p) for p in list_images(photos)},
        "code": [digest(Path(degradations.__file__)), digest(Path(__file__))],
    }
    folders: dict[str, Path] = {task: out / task for task in tasks}
    stale = [task for task in tasks if not up_to_date(folders[task], parameters)]
    if not stale:
        return folders
    cut = {
        source: cut_tiles(photos / source, count, crop, min_gradient, seed)
        for (source, *_), count in zip(_SPLITS, (train_count, test_count, test_count), strict=True)
        if source != _OPTIONAL or (photos / source).is_dir()
    }
    for task in stale:
        _write_task(folders[task], task, cut, parameters)
    return folders


def _check(tasks: Sequence[Kind], crop: int, train_count: int, test_count: int, severity: tuple[float, float]) -> None:
    unknown = [task for task in tasks if task not in KINDS]
    if unknown or not tasks:
        raise ValueError(f"tasks={list(tasks)}: choose from {', '.join(KINDS)}")
    if crop < 16 or train_count < 1 or test_count < 1:
        raise ValueError(f"crop={crop}, train_count={train_count}, test_count={test_count}: at least 16, 1 and 1")
    if not 0 < severity[0] <= severity[1] <= 1:
        raise ValueError(f"severity={severity}: need 0 < low <= high <= 1")


def up_to_date(folder: Path, parameters: dict[str, Any]) -> bool:
    """Whether `folder` was written with these parameters and still holds all its files.

    Raises:
        DataError: the folder holds something else, which must not be replaced.
    """
    if not folder.exists():
        return False
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        held = manifest["parameters"]
        return bool(held == parameters) and all((folder / file).is_file() for file in manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} exists but was not made by this command; remove it or choose another") from error


def cut_tiles(folder: Path, count: int, side: int, min_gradient: float, seed: int) -> list[tuple[Tile, Pixels]]:
    """Textured tiles with their pixels, float32 [side, side, 3] in [0, 1]; one of each photograph in turn."""
    files = list_images(folder)
    if not files:
        raise DataError(f"{folder} holds no photograph")
    queues: list[list[tuple[Tile, Pixels]]] = []
    for file in files:
        pixels = read_image(file).permute(1, 2, 0).numpy()
        queues.append(
            [
                (tile, np.ascontiguousarray(pixels[tile.y : tile.y + side, tile.x : tile.x + side]))
                for tile in _candidates(file.stem, pixels, side, min_gradient, seed)
            ]
        )
    tiles = [tile for turn in zip_longest(*queues) for tile in turn if tile is not None][:count]
    if not tiles:
        raise DataError(f"{folder} holds no tile of {side} px with a mean gradient above {min_gradient}")
    return tiles


def _candidates(photo: str, pixels: Pixels, side: int, min_gradient: float, seed: int) -> list[Tile]:
    """Textured tiles, first those of a grid without overlap, then those half a tile beside it, shuffled each."""
    height, width = pixels.shape[:2]
    grey = pixels.mean(2)
    rng = seeded_rng(f"tiles/{photo}", seed)
    chosen: list[Tile] = []
    index = 0
    for shift in (0, side // 2):
        textured = []
        for y in range(height % side // 2 + shift, height - side + 1, side):
            for x in range(width % side // 2 + shift, width - side + 1, side):
                part = grey[y : y + side, x : x + side]
                gradient = np.abs(np.diff(part, axis=0)).mean() + np.abs(np.diff(part, axis=1)).mean()
                if gradient > min_gradient:
                    textured.append(Tile(f"{photo}_{index:04d}", photo, y, x, side))
                index += 1
        chosen += [textured[i] for i in rng.permutation(len(textured))]
    return chosen


def _write_task(
    folder: Path, task: Kind, cut: dict[str, list[tuple[Tile, Pixels]]], parameters: dict[str, Any]
) -> None:
    """Write a task's set beside `folder` and put it in its place at once."""
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    files, entries = [], []
    low, high = parameters["severity"]
    try:
        for source, plain, lol in _SPLITS:
            split, *sides = (lol, "Low", "Normal") if task == "low_light" else (plain, "input", "target")
            for tile, clean in cut.get(source, ()):
                rng = seeded_rng(f"{task}/{source}/{tile.name}", parameters["seed"])
                severity = float(rng.uniform(low, high))
                for side, image in zip(sides, (degrade(clean, task, severity, rng), clean), strict=True):
                    files.append(f"{split}/{side}/{tile.name}.png")
                    write_image(fresh / files[-1], np.round(image * 255).astype(np.uint8))
                entries.append({**asdict(tile), "split": split, "severity": round(severity, 4)})
        manifest = {
            "about": "Tiles of photographs, named after their source; data/photos/ATTRIBUTION.md has the licences.",
            "task": task,
            "parameters": parameters,
            "files": files,
            "tiles": entries,
        }
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if folder.exists():  # an older set of ours: up_to_date has refused anything else
            shutil.rmtree(folder)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
