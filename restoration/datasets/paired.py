"""Folders of degraded images beside folders of their clean originals.

What can be wrong with the names of such folders is found at construction, and from headers, of more than `HEADERS`
pairs of so many, whether sizes are equal and files whole; a run leaves a training picture out that turns out otherwise.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

import numpy as np
import torch
from torch import Tensor

from restoration.datasets.matching import EACH, DataError, Match, Side, many_objects, pair_up, some
from restoration.datasets.readers import IMAGES, Reader, Size
from restoration.images import ImageError, Pixels, to_float

__all__ = ["DataError", "Match", "Pair", "PairedFolder", "crop_pair", "discover", "random_crop"]

Crop = tuple[int, int, int, int]
CACHE_BYTES = 256 * 2**20
HEADERS = 2048  # pairs whose headers are read when a set is opened

# Names of the LQ and GT folder in the layouts of public sets, in the order they are looked for; {split} is the name
# of the folder they lie in (REDS: train/train_blur).
LAYOUTS = (
    ("input", "target"),
    ("Low", "Normal"),
    ("low", "high"),
    ("blur", "sharp"),
    ("blur", "gt"),
    ("{split}_blur", "{split}_sharp"),
    ("rainy_image", "ground_truth"),
    ("rainy image", "ground truth"),
    ("source", "target"),
    ("input_crops", "target_crops"),
)
# Of these a split may hold one pair of folders for each sequence (GoPro, RealBlur), which make one set.
SEQUENCES = (("blur", "sharp"), ("blur", "gt"))
OTHER_LQ = ("blur_gamma",)  # a second degraded version of the same pictures beside the one that is taken


@dataclass(frozen=True)
class Pair:
    """One degraded image and its original.

    Attributes:
        image_id: relative stem of LQ.
        known_size: (height, width) of both, where a header was read already.
        reader: of both files, unless `lq_reader` is that of LQ.
        lq_right: the second view of a dual-pixel camera, of which `lq_path` is the left one.
    """

    image_id: str
    lq_path: Path
    gt_path: Path
    known_size: Size | None = None
    reader: Reader = IMAGES
    lq_right: Path | None = None
    lq_reader: Reader | None = None

    @property
    def size(self) -> Size:
        """(height, width) of both. Raises ImageError where a header must be read and can't be."""
        return self.known_size or (self.lq_reader or self.reader).size(self.lq_path)

    @property
    def files(self) -> tuple[tuple[Path, Reader], ...]:
        """Views of LQ, and the original last, each with what reads it."""
        views = (self.lq_path,) if self.lq_right is None else (self.lq_path, self.lq_right)
        return *((path, self.lq_reader or self.reader) for path in views), (self.gt_path, self.reader)


class PairedFolder:
    """Pairs of images of equal size in two folders (searched at any depth, also behind links).

    Names are compared in Unicode's composed form (`restoration.image_files`). Of more than `HEADERS` pairs only so many
    headers are read at once, evenly spread, so that a large set opens in seconds; the others are read when asked for.

    Args:
        lq: folder of degraded images; with a part `*` (train/*/blur) such a folder of each sequence.
        gt: folder of originals, likewise.
        match: how files find each other. "stem": equal relative path up to the suffix; "digits": equal numbers in
            the file name (`low00690.png` and `normal00690.png`); "sorted": by position in natural order; "group":
            several degraded versions of an original, whose name goes on after an underscore (`1_1.jpg`, `1_2.jpg` and
            `1.jpg`); None: by the names, never "sorted". The attribute says which.
        expected_count: the published number of pairs; another number only warns.
        cache_bytes: how much of the decoded images is kept in memory (least recently used go first).
        check: read headers at once; else `load` tells of a file that can't be read or a pair of two sizes.

    Raises:
        FileNotFoundError: a folder doesn't exist.
        DataError: an empty folder; different numbers of images; an image without partner; a pair of two sizes.
        ImageError: a file whose header can't be read or whose end is missing.
    """

    def __init__(
        self,
        lq: Path,
        gt: Path,
        match: Match | None = "stem",
        expected_count: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        check: bool = True,
    ) -> None:
        lq, gt = Path(lq), Path(gt)
        with many_objects():
            match, paths = pair_up(Side.of(lq), Side.of(gt), match)
            self._hold(lq, gt, match, [Pair(*names) for names in paths], cache_bytes, check)
        if expected_count is not None and len(self.pairs) != expected_count:
            warnings.warn(
                f"{self.lq} holds {len(self.pairs)} pairs, the published set {expected_count}: "
                "figures are not comparable with published ones",
                stacklevel=2,
            )

    @classmethod
    def of_pairs(
        cls,
        lq: Path,
        gt: Path,
        match: Match,
        pairs: Sequence[Pair],
        cache_bytes: int = CACHE_BYTES,
        check: bool = True,
    ) -> PairedFolder:
        """Pairs that were found already; `lq`, `gt` and `match` say, for people, where and how.

        Raises:
            DataError: no pair, two of one id, a pair of two sizes.
            ImageError: as the constructor.
        """
        made = cls.__new__(cls)
        if not pairs:
            raise DataError(f"{lq} holds no pair")
        twice = [i for i, count in Counter(pair.image_id for pair in pairs).items() if count > 1]
        if twice:
            raise DataError(f"{lq}: {len(twice)} pictures are there twice ({some(twice)}); keep one of each")
        made._hold(lq, gt, match, pairs, cache_bytes, check)
        return made

    def _hold(self, lq: Path, gt: Path, match: Match, pairs: Sequence[Pair], cache_bytes: int, check: bool) -> None:
        self.lq, self.gt, self.match = lq, gt, match
        self.pairs = _checked(pairs, HEADERS) if check else [replace(p, known_size=_size_or_least(p)) for p in pairs]
        self._by_id = {pair.image_id: pair for pair in self.pairs}
        self._cache = _PixelCache(cache_bytes)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def image_ids(self) -> list[str]:
        return [pair.image_id for pair in self.pairs]

    def read_sizes(self) -> None:
        """Read the headers that were left out, for a set whose sizes are asked for again and again, in any process.

        Raises:
            ImageError, DataError: as the constructor.
        """
        self.pairs = _checked(self.pairs, len(self.pairs))
        self._by_id = {pair.image_id: pair for pair in self.pairs}

    @property
    def known_sizes(self) -> list[Size]:
        """(height, width) of the pairs whose headers were read, which are all unless there are many."""
        return [pair.known_size for pair in self.pairs if pair.known_size is not None]

    def pair(self, image_id: str) -> Pair:
        """The pair of that id.

        Raises:
            KeyError: no such image.
        """
        if image_id not in self._by_id:
            raise KeyError(f"no image {image_id!r} in {self.lq}; it holds {some(self.image_ids)}")
        return self._by_id[image_id]

    def load(self, image_id: str) -> tuple[Tensor, Tensor]:
        """(lq, gt), float32 [3, H, W] in [0, 1] each; decoded files are cached.

        Of a dual-pixel pair lq is the mean of both views, which is what the whole pixel saw (`views` has each).

        Raises:
            KeyError: no such image.
            ImageError: a file that is truncated or has gone.
            DataError: two sizes, of a set that was not checked.
        """
        *views, gt = self.views(image_id)
        return views[0] if len(views) == 1 else torch.stack(views).mean(0), gt

    def views(self, image_id: str) -> list[Tensor]:
        """The views of LQ, of a dual-pixel pair left and right, and behind them the original; otherwise as `load`."""
        pair = self.pair(image_id)
        images = [to_float(self._cache.read(*file)) for file in pair.files]
        for (path, _), image in zip(pair.files, images[:-1], strict=False):
            if image.shape != images[-1].shape:
                sizes = f"{_named(image.shape[-2:])} and {_named(images[-1].shape[-2:])}"
                raise DataError(f"{path} and {pair.gt_path} differ in size: {sizes} (width x height)")
        return images

    def require_side(self, side: int) -> None:
        """Refuse a set of which crops of `side` pixels can't be taken, as far as its headers were read.

        Raises:
            DataError: images are smaller; the message lists the first.
        """
        small = [
            f"{p.image_id} ({_named(p.known_size)})" for p in self.pairs if p.known_size and min(p.known_size) < side
        ]
        if small:
            raise DataError(
                f"{self.lq}: {len(small)} of {len(self)} images are smaller than the crop of {side} px: "
                f"{some(small)}; remove them or choose a smaller crop"
            )


def discover(root: Path, split: str, match: Match | None = None, cache_bytes: int = CACHE_BYTES) -> PairedFolder:
    """Open `<root>/<split>/{input,target}`, or the same in another public layout (`LAYOUTS`).

    `split` is a folder's path below `root` (`train`, `test/Rain100L`, `.` for `root` itself), in lower or upper case
    ("test" finds LOL's "Test"), and one folder with the set's name may lie between (`test/Rain100L/input`). Where that
    are several of `SEQUENCES`, as GoPro has them (`train/GOPR0372_07_00/{blur,sharp}`), they make one set. Without
    `match`, equal stems are preferred; see `PairedFolder`.

    Raises:
        FileNotFoundError: no such split or no pair of folders in it; the message lists what was looked for.
        DataError: several sets lie in the split, or as `PairedFolder`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; give the folder that holds the split {split!r}")
    folders = _folders_of(root, split)
    places = [(f, name) for f in folders for name in ("", *(_inside(f)))]
    found = [
        (folder, name, pair)
        for folder, name in places
        for pair in (tuple(part.format(split=folder.name) for part in layout) for layout in LAYOUTS)
        if all((folder / name / part).is_dir() for part in pair)
    ]
    if not found:
        looked_for = ", ".join("{" + ",".join(names) + "}" for names in LAYOUTS).replace("{split}", folders[0].name)
        raise FileNotFoundError(
            f"{folders[0]} holds no pair of folders; looked for {looked_for}; rename yours, or link to them under such "
            "names (ln -s)"
        )
    folder, name, pair = found[0]
    if len(found) > 1:
        if pair not in SEQUENCES or any((f, p) != (folder, pair) or not n for f, n, p in found):
            sets = [(f / n).relative_to(root).as_posix() for f, n, _ in found]
            raise DataError(
                f"{root}: the split {split!r} holds several sets ({some(sets)}); choose one, such as {sets[-1]!r} in "
                f"place of {split!r} (data.train, data.heldout)"
            )
        name = EACH
    lq, gt = (folder / name / part for part in pair)
    if others := [part for part in OTHER_LQ if any((folder / n / part).is_dir() for _, n, _ in found)]:
        warnings.warn(
            f"{folder} holds {some(others)} beside {pair[0]}, which is the one that is taken; for the other, make "
            f"folders named {pair[0]} and {pair[1]} of links to it and to the originals (ln -s)",
            stacklevel=2,
        )
    return PairedFolder(lq, gt, match, cache_bytes=cache_bytes)


def _folders_of(root: Path, split: str) -> list[Path]:
    """The folders that `split` names below `root`, of which upper and lower case make several.

    Raises:
        FileNotFoundError: none.
    """
    folders = [root]
    for part in PurePath(split).parts:
        below = [f / name for f in folders for name in _inside(f) if name.lower() == part.lower()]
        if not below:
            inside = _inside(folders[0])
            layout = next((pair for pair in LAYOUTS if {*pair} <= {*inside}), None)
            itself = f"; for the {{{','.join(layout)}}} in it give '.' in place of {split!r}" if layout else ""
            raise FileNotFoundError(
                f"{folders[0]} has no folder {part!r}; it holds {some(inside) or 'no folder'}{itself}"
            )
        folders = below
    return folders


def _inside(folder: Path) -> list[str]:
    """Names of the folders in `folder`."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


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

    def read(self, path: Path, reader: Reader) -> Pixels:
        with self._lock:
            if path in self._kept:
                self._kept.move_to_end(path)
                return self._kept[path]
        pixels = reader.pixels(path)
        with self._lock:
            if path not in self._kept and pixels.nbytes <= self.limit:
                self._kept[path] = pixels
                self.held += pixels.nbytes
            while self.held > self.limit:
                self.held -= self._kept.popitem(last=False)[1].nbytes
        return pixels


def _checked(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """The pairs with their sizes; of more than `most` only so many, evenly spread, get one."""
    held, wrong = list(pairs), []
    count = min(len(pairs), most)
    for place in (i * len(pairs) // count for i in range(count)):
        pair = pairs[place]
        if pair.known_size is not None:
            continue
        sizes = [reader.size(path) for path, reader in pair.files]
        for path, reader in pair.files:
            reader.check(path)
        if len({*sizes}) > 1:
            wrong.append(f"{pair.image_id} (LQ {_named(sizes[0])}, GT {_named(sizes[-1])})")
        held[place] = replace(pair, known_size=sizes[0])
    if wrong:
        where = f"{pairs[0].lq_path.parent} and {pairs[0].gt_path.parent}"
        raise DataError(f"LQ/GT size mismatch in {len(wrong)} pairs of {where}: {some(wrong)} (width x height)")
    return held


def _size_or_least(pair: Pair) -> Size:
    """(height, width), (1, 1) of a file that can't be read."""
    try:
        return pair.size
    except ImageError:
        return 1, 1


def _named(size_hw: Sequence[int]) -> str:
    return f"{size_hw[1]}x{size_hw[0]}"
