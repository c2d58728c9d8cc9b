"""Folders of degraded images beside folders of their clean originals.

Everything that can be wrong with such folders is found at construction, from names and headers, so that a
run of hours never ends in a missing file.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from restoration.image_ends import check_whole
from restoration.images import Pixels, image_size, list_images, read_pixels, to_float

Match = Literal["stem", "digits", "sorted"]
Crop = tuple[int, int, int, int]

# Names of the LQ and GT folder in the layouts of public sets, in the order they are looked for.
LAYOUTS = (
    ("input", "target"),
    ("Low", "Normal"),
    ("low", "high"),
    ("blur", "sharp"),
    ("input_crops", "target_crops"),
)


class DataError(ValueError):
    """Folders that don't form pairs; the message names them and says what is missing."""


@dataclass(frozen=True)
class Pair:
    """One degraded image and its original; `size` is (height, width) of both, `image_id` the relative stem of LQ."""

    image_id: str
    lq_path: Path
    gt_path: Path
    size: tuple[int, int]


class PairedFolder:
    """Pairs of images of equal size in two folders (searched at any depth).

    Args:
        lq: folder of degraded images.
        gt: folder of originals.
        match: how files find each other. "stem": equal relative path up to the suffix; "digits": equal numbers in
            the file name (`low00690.png` and `normal00690.png`); "sorted": by position in natural order.
        expected_count: the published number of pairs; another number only warns.
        cache_bytes: how much of the decoded images is kept in memory (least recently used go first).

    Raises:
        FileNotFoundError: a folder doesn't exist.
        DataError: an empty folder; different numbers of images; an image without partner; a pair of two sizes.
        ImageError: a file whose header can't be read or whose end is missing.
    """

    def __init__(
        self,
        lq: Path,
        gt: Path,
        match: Match = "stem",
        expected_count: int | None = None,
        cache_bytes: int = 256 * 2**20,
    ) -> None:
        self.lq, self.gt, self.match = Path(lq), Path(gt), match
        self.pairs = _checked_sizes(_pair_up(self.lq, self.gt, match))
        self._by_id = {pair.image_id: pair for pair in self.pairs}
        self._cache = _PixelCache(cache_bytes)
        if expected_count is not None and len(self.pairs) != expected_count:
            warnings.warn(
                f"{self.lq} holds {len(self.pairs)} pairs, the published set {expected_count}: "
                "figures are not comparable with published ones",
                stacklevel=2,
            )

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def image_ids(self) -> list[str]:
        return [pair.image_id for pair in self.pairs]

    def pair(self, image_id: str) -> Pair:
        """The pair of that id.

        Raises:
            KeyError: no such image.
        """
        if image_id not in self._by_id:
            raise KeyError(f"no image {image_id!r} in {self.lq}; it holds {_some(self.image_ids)}")
        return self._by_id[image_id]

    def load(self, image_id: str) -> tuple[Tensor, Tensor]:
        """(lq, gt), float32 [3, H, W] in [0, 1] each; decoded files are cached.

        Raises:
            KeyError: no such image.
            ImageError: a file that is truncated or has gone.
        """
        pair = self.pair(image_id)
        return to_float(self._cache.read(pair.lq_path)), to_float(self._cache.read(pair.gt_path))

    def require_side(self, side: int) -> None:
        """Refuse a set of which crops of `side` pixels can't be taken.

        Raises:
            DataError: images are smaller; the message lists the first.
        """
        small = [f"{p.image_id} ({_named(p.size)})" for p in self.pairs if min(p.size) < side]
        if small:
            raise DataError(
                f"{self.lq}: {len(small)} of {len(self)} images are smaller than the crop of {side} px: "
                f"{_some(small)}; remove them or choose a smaller crop"
            )


def discover(root: Path, split: str, match: Match | None = None, cache_bytes: int = 256 * 2**20) -> PairedFolder:
    """Open `<root>/<split>/{input,target}`, or the same in another public layout (`LAYOUTS`).

    `split` may be written in lower or upper case ("test" finds LOL's "Test"), and one folder with the set's name
    may lie between (`test/Rain100L/input`). Without `match`, equal stems are preferred and numbers come second.

    Raises:
        FileNotFoundError: no such split or no pair of folders in it; the message lists what was looked for.
        DataError: several sets lie in the split, or as `PairedFolder`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; give the folder that holds the split {split!r}")
    folders = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name.lower() == split.lower()]
    if not folders:
        inside = [p.name for p in sorted(root.iterdir()) if p.is_dir()]
        raise FileNotFoundError(f"{root} has no folder {split!r}; it holds {_some(inside) or 'no folder'}")
    places = [p for f in folders for p in (f, *sorted(c for c in f.iterdir() if c.is_dir()))]
    found = [
        (place / low, place / high)
        for place in places
        for low, high in LAYOUTS
        if (place / low).is_dir() and (place / high).is_dir()
    ]
    if not found:
        looked_for = ", ".join("{" + ",".join(names) + "}" for names in LAYOUTS)
        raise FileNotFoundError(f"{folders[0]} holds no pair of folders; looked for {looked_for}")
    if len(found) > 1:
        sets = _some([str(low.relative_to(root)) for low, _ in found])
        raise DataError(f"{root}: the split {split!r} holds several sets ({sets}); open one with PairedFolder(lq, gt)")
    lq, gt = found[0]
    if match is None:
        stems = [{_relative_stem(p, folder) for p in list_images(folder)} for folder in (lq, gt)]
        numbered = stems[0].isdisjoint(stems[1]) and all(_digits(s) for s in stems[0] | stems[1])
        match = "digits" if numbered else "stem"
    return PairedFolder(lq, gt, match, cache_bytes=cache_bytes)


def random_crop(size_hw: tuple[int, int], side: int, rng: np.random.Generator) -> Crop:
    """A uniformly drawn square (y, x, side, side) inside an image of `size_hw`.

    Raises:
        ValueError: the image is smaller than the crop.
    """
    height, width = size_hw
    if side < 1 or min(height, width) < side:
        raise ValueError(f"a crop of {side} px does not fit into an image of {_named(size_hw)}")
    return int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1)), side, side


def crop_pair(lq: Tensor, gt: Tensor, crop: Crop, flip: bool) -> tuple[Tensor, Tensor]:
    """The same window (y, x, height, width) of [..., H, W] images, mirrored left-right if `flip`.

    Raises:
        ValueError: the images differ in size or the window leaves them.
    """
    y, x, height, width = crop
    if lq.shape[-2:] != gt.shape[-2:]:
        raise ValueError(f"LQ {_named(lq.shape[-2:])} and GT {_named(gt.shape[-2:])} differ in size")
    inside = y >= 0 and x >= 0 and y + height <= lq.shape[-2] and x + width <= lq.shape[-1]
    if not inside or height < 1 or width < 1:
        raise ValueError(f"crop {crop} leaves the image of {_named(lq.shape[-2:])}")
    parts = [image[..., y : y + height, x : x + width] for image in (lq, gt)]
    if flip:
        parts = [part.flip(-1) for part in parts]
    return parts[0], parts[1]


class _PixelCache:
    """Decoded files up to a number of bytes, least recently used out first; safe under threads."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self._kept: OrderedDict[Path, Pixels] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_PixelCache], tuple[int]]:
        return type(self), (self.limit,)  # travels to another process empty

    def read(self, path: Path) -> Pixels:
        with self._lock:
            if path in self._kept:
                self._kept.move_to_end(path)
                return self._kept[path]
        pixels = read_pixels(path)
        with self._lock:
            if path not in self._kept and pixels.nbytes <= self.limit:
                self._kept[path] = pixels
                self.held += pixels.nbytes
            while self.held > self.limit:
                self.held -= self._kept.popitem(last=False)[1].nbytes
        return pixels


def _pair_up(lq: Path, gt: Path, match: Match) -> list[tuple[str, Path, Path]]:
    """(image id, LQ path, GT path) in natural order of the ids."""
    if match not in get_args(Match):
        raise DataError(f"match={match!r}: choose one of {', '.join(get_args(Match))}")
    files = {folder: list_images(folder) for folder in (lq, gt)}
    for folder, found in files.items():
        if not found:
            raise DataError(f"{folder} holds no image; it must hold the {'degraded' if folder == lq else 'clean'} ones")
    count = f"{lq} holds {len(files[lq])} images, {gt} {len(files[gt])}"
    if match == "sorted":
        if len(files[lq]) != len(files[gt]):
            raise DataError(f"LQ/GT count mismatch: {count}; sorted matching needs equal counts")
        ordered = [sorted(files[f], key=lambda p, f=f: _natural(_relative_stem(p, f))) for f in (lq, gt)]  # type: ignore[misc]
        _keyed(files[lq], lq, "stem")
        return [(_relative_stem(a, lq), a, b) for a, b in zip(*ordered, strict=True)]
    left, right = (_keyed(files[f], f, match) for f in (lq, gt))
    if left.keys() != right.keys():
        alone = [
            [_relative_stem(k[q], f) for q in k if q not in o] for k, o, f in ((left, right, lq), (right, left, gt))
        ]
        problem = "LQ/GT count mismatch" if len(left) != len(right) else "unmatched images"
        parts = [f"without {what}: {_some(names)}" for what, names in zip(("GT", "LQ"), alone, strict=True) if names]
        raise DataError(f"{problem}: {count}; {'; '.join(parts)} (matched by {match})")
    pairs = [(_relative_stem(path, lq), path, right[key]) for key, path in left.items()]
    return sorted(pairs, key=lambda p: _natural(p[0]))


def _checked_sizes(paths: Sequence[tuple[str, Path, Path]]) -> list[Pair]:
    pairs, wrong = [], []
    for image_id, lq, gt in paths:
        sizes = image_size(lq), image_size(gt)
        check_whole(lq)
        check_whole(gt)
        if sizes[0] != sizes[1]:
            wrong.append(f"{image_id} (LQ {_named(sizes[0])}, GT {_named(sizes[1])})")
        pairs.append(Pair(image_id, lq, gt, sizes[0]))
    if wrong:
        where = f"{paths[0][1].parent} and {paths[0][2].parent}"
        raise DataError(f"LQ/GT size mismatch in {len(wrong)} pairs of {where}: {_some(wrong)} (width x height)")
    return pairs


def _keyed(files: Sequence[Path], folder: Path, match: Match) -> dict[str, Path]:
    keyed: dict[str, Path] = {}
    for path in files:
        stem = _relative_stem(path, folder)
        key = _digits(stem) if match == "digits" else stem
        if not key:
            raise DataError(
                f"{path} has no number in its name, so it can't be matched by digits; match by stem or sorted"
            )
        if key in keyed:
            raise DataError(f"{keyed[key]} and {path} have the same {match}; keep one, or match in another way")
        keyed[key] = path
    return keyed


def _relative_stem(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _digits(stem: str) -> str:
    return ",".join(str(int(number)) for number in re.findall(r"\d+", stem))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which a2 comes before a10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _named(size_hw: Sequence[int]) -> str:
    return f"{size_hw[1]}x{size_hw[0]}"


def _some(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
