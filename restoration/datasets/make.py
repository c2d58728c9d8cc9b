"""Small stand-ins for public sets: tiles of photographs, degraded with a seed, in exactly the layout of the set.

Every loader and protocol can so be tried on real files before the set itself is there. Figures on them mean nothing.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from restoration import degradations
from restoration.datasets.layouts import Among, Folders, Listed, Loose, Scenes, Source
from restoration.datasets.matching import EACH, DataError
from restoration.datasets.opening import public_set
from restoration.datasets.registry import Layout, PublicSet
from restoration.degradations import GAMMA, degrade, seeded_rng
from restoration.demo_data import MANIFEST, Tile, cut_tiles, digest, up_to_date
from restoration.image_files import list_images
from restoration.images import write_image

Picture: TypeAlias = NDArray[np.float32]
SEQUENCES = ("GOPR0372_07_00", "GOPR0384_11_01")
INPUTS = 2  # arrays of a scene, but for one more than a protocol takes where it takes the first ones
SEVERITY = (0.3, 1.0)
_PHOTOS = {"train": "train", "val": "train", "test": "heldout"}  # split -> folder of photographs


@dataclass(frozen=True)
class Made:
    """A clean tile and what was done to it, float32 [H, W, 3] in [0, 1]; `left` and `right` as a dual pixel sees it."""

    tile: Tile
    clean: Picture
    degraded: Picture
    left: Picture
    right: Picture


def make_set(
    name: str,
    photos: Path,
    out: Path,
    *,
    layout: str | None = None,
    seed: int = 0,
    side: int = 128,
    train: int = 8,
    test: int = 4,
    min_gradient: float = 0.02,
) -> dict[str, int]:
    """Write the set `name` below `out`, which `data.root` may name then; returns the pairs of each split.

    Nothing is written where the manifest says that nothing changed; a folder that this function didn't make is
    refused. The folder appears whole.

    Args:
        photos: folder with train/ and heldout/ photographs.
        layout: one of the set's; None for its first.
        side: of a tile, in pixels.
        train, test: tiles of the training split, and of each other one; a set of arrays has at most as many scenes as
            its stand-in names, of two inputs each.

    Raises:
        ValueError: an unknown set or layout, counts or side out of range.
        FileNotFoundError: no folder of photographs.
        DataError: fewer tiles than asked for, or a folder of something else.
        ImageError: a photograph that can't be read, a file that can't be written.
    """
    of, photos, out = public_set(name), Path(photos), Path(out)
    chosen = _layout(of, layout)
    if side < 16 or train < 2 or test < 2:
        raise ValueError(f"side={side}, train={train}, test={test}: at least 16, 2 and 2")
    parameters: dict[str, Any] = {
        "set": name,
        "layout": chosen.name,
        "seed": seed,
        "side": side,
        "train": train,
        "test": test,
        "min_gradient": min_gradient,
        "photos": {p.relative_to(photos).as_posix(): digest(p) for p in list_images(photos)},
        "code": [digest(Path(file)) for file in (degradations.__file__, __file__)],
    }
    if up_to_date(out, parameters):
        held: dict[str, int] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["pairs"]
        return held
    splits = {split: source for split, source in chosen.splits.items() if "/" not in split}
    counts = {split: train if split == "train" else test for split in splits}
    for split, source in splits.items():
        counts[split] = min(counts[split], len(source.numbers)) if isinstance(source, Scenes) else counts[split]
    cut = {}
    for folder in {_PHOTOS[split] for split in splits}:
        wanted = sum(counts[s] for s in splits if _PHOTOS[s] == folder)
        cut[folder] = cut_tiles(photos / folder, wanted, side, min_gradient, seed)
        if (there := len(cut[folder])) < wanted:
            raise DataError(
                f"{photos / folder} has {there} tiles of {side} px with texture, and {wanted} are asked for; ask for "
                "fewer, or smaller ones, or give more photographs"
            )
    fresh = out.with_name(f".{out.name}.{uuid.uuid4().hex}.tmp")
    pairs, tiles = {}, []
    try:
        for split, source in splits.items():
            taken, cut[_PHOTOS[split]] = cut[_PHOTOS[split]][: counts[split]], cut[_PHOTOS[split]][counts[split] :]
            made = [_made(of, split, tile, clean, seed) for tile, clean in taken]
            tiles += [{**asdict(m.tile), "split": split} for m in made]
            pairs[split] = _write(fresh, source, split, made)
        _write_lists(fresh, chosen, pairs)
        files = sorted(p.relative_to(fresh).as_posix() for p in fresh.rglob("*") if p.is_file())
        about = f"A stand-in for {of.title}, made of photographs; data/photos/ATTRIBUTION.md has their licences."
        manifest = {"about": about, "parameters": parameters, "pairs": pairs, "files": files, "tiles": tiles}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        if out.exists():  # an older one of ours: up_to_date has refused anything else
            shutil.rmtree(out)
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return pairs


def _layout(of: PublicSet, name: str | None) -> Layout:
    names = [layout.name for layout in of.layouts]
    if name is not None and name not in names:
        raise ValueError(f"{of.name} has no layout {name!r}; choose one of {', '.join(names)}")
    return of.layouts[names.index(name) if name is not None else 0]


def _made(of: PublicSet, split: str, tile: Tile, clean: Picture, seed: int) -> Made:
    rng = seeded_rng(f"{of.name}/{split}/{tile.name}", seed)
    severity = float(rng.uniform(*SEVERITY))
    if of.degradation == "defocus":
        left, right = dual_pixel(clean, 1.5 + 4.5 * severity)
        return Made(tile, clean, np.asarray((left + right) / 2, dtype=np.float32), left, right)
    degraded = degrade(clean, of.degradation, severity, rng)
    return Made(tile, clean, degraded, degraded, degraded)


def dual_pixel(clean: Picture, radius: float) -> tuple[Picture, Picture]:
    """The views of the left and the right half of the aperture, each blurred by half a disk of `radius` pixels."""
    half = int(np.ceil(radius + 0.5))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    views = []
    for inside in (np.clip(0.5 - x, 0, 1), np.clip(0.5 + x, 0, 1)):
        kernel = (disk * inside / (disk * inside).sum()).astype(np.float32)
        linear = cv2.filter2D(np.power(clean, np.float32(GAMMA)), -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        views.append(np.power(np.clip(linear, 0, 1), np.float32(1 / GAMMA)).astype(np.float32))
    return views[0], views[1]


def _write(root: Path, source: Source, split: str, made: Sequence[Made]) -> int:
    """Write the files of a split; returns its pairs."""
    base = root / source.above
    match source:
        case Folders():
            return _write_folders(base, source, split, made)
        case Scenes():
            return _write_scenes(base, source, made)
        case Listed():
            return _write_listed(base, source, made)
        case Loose():
            for place, m in enumerate(made):
                _save(base / source.folder / f"{place:04d}.png", m.degraded)
            return len(made)


def _write_folders(base: Path, source: Folders, split: str, made: Sequence[Made]) -> int:
    bits = 8 if source.bits is None else 16  # sets that are read as 8 bits are published in 16
    first = {"train": 1, "val": 401, "test": 690}[split]
    for place, m in enumerate(made):
        sequence = SEQUENCES[place % len(SEQUENCES)]
        lq, gt = (base / part.replace(EACH, sequence) for part in (source.lq, source.gt))
        names = [n.format(first + place + gap) for n, gap in zip(source.names, (0, source.gap), strict=True)]
        if source.right is None:
            _save(lq / names[0], m.degraded, bits)
        else:
            _save(lq / names[0], m.left, bits)
            _save(base / source.right / names[0].replace("_L.", "_R."), m.right, bits)
        _save(gt / names[1], m.clean, bits)
        if EACH in source.lq:
            _save(lq.with_name("blur_gamma") / names[0], m.degraded)
    return len(made)


def _write_scenes(base: Path, source: Scenes, made: Sequence[Made]) -> int:
    count = 0
    for place, (scene, m) in enumerate(zip(source.numbers[: len(made)], made, strict=True)):
        inputs = source.frames + 1 if source.frames and not place else INPUTS
        for i in range(inputs):
            dimmer = (m.degraded * np.float32(1 - 0.5 * i / inputs)).clip(0, 1)
            name = f"{i + 1:04d}" if isinstance(source.chosen, Among) else f"{scene}_{i:02d}_0.04s"
            _save(base / source.lq / scene / f"{name}.npy", dimmer)
        count += min(inputs, source.frames or inputs)
        # Only the first original counts; what stands beside it would give other figures.
        for name in _originals(source, scene):
            wrong = any(word in name for word in source.not_gt) or name.endswith("_30s")
            _save(base / source.gt / scene / f"{name}.npy", 1 - m.clean if wrong else m.clean)
    return count


def _originals(source: Scenes, scene: str) -> Iterator[str]:
    if isinstance(source.chosen, Among):
        yield from (f"{scene}_a_half", f"{scene}_long")
    else:
        yield from (f"{scene}_00_10s", f"{scene}_01_30s")


def _write_listed(base: Path, source: Listed, made: Sequence[Made]) -> int:
    lines, aliases = [], dict(source.aliases)
    for place, m in enumerate(made):
        scene, number = source.scenes[place % len(source.scenes)], place // len(source.scenes) + 1
        for side, picture in (("gt", m.clean), ("blur", m.degraded)):
            _save(base / source.inside / aliases.get(scene, scene) / side / f"{side}_{number}.png", picture)
        lines.append(" ".join(f"{source.inside}/{scene}/{side}/{side}_{number}.png" for side in ("gt", "blur")))
    (base / source.list).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(made)


def _write_lists(root: Path, layout: Layout, pairs: dict[str, int]) -> None:
    """Lists that a set's user has beside its folders: test scenes, and indoor and outdoor pictures."""
    for split, source in layout.splits.items():
        if isinstance(source, Scenes) and isinstance(source.chosen, Among):
            file = root / source.above / source.chosen.files[0]
            file.write_text("\n".join(source.chosen.published) + "\n", encoding="utf-8")
        elif isinstance(source, Folders) and source.only is not None:
            count = pairs[split.split("/")[0]]
            half = np.arange(1, count + 1)[count // 2 :] if source.only == "outdoor" else np.arange(1, count // 2 + 1)
            np.save(root / source.above / f"{source.only}_labels.npy", half, allow_pickle=False)


def _save(path: Path, picture: Picture, bits: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.round(picture * 255).astype(np.uint8)
    if path.suffix == ".npy":
        np.save(path, levels[..., ::-1], allow_pickle=False)
    elif path.suffix == ".jpg":
        Image.fromarray(levels).save(path, quality=95, subsampling=0)
    elif bits == 16:
        write_image(path, torch.from_numpy(np.moveaxis(picture, -1, 0).copy()), bits=16)
    else:
        write_image(path, levels)
