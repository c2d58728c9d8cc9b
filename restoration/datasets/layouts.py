"""How the files of public sets lie: folders, scenes of arrays, lists of files, pictures without originals.

Each kind finds its files below a folder of the user's, which may be any of those above the set: of
`Datasets/test/Rain100H/input` the root may be `Datasets`, `Datasets/test` or `Rain100H`. Upper and lower case are one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

import numpy as np

from restoration.datasets.matching import EACH, DataError, Match, Side, natural, pair_up, some
from restoration.datasets.paired import CACHE_BYTES, Pair, PairedFolder
from restoration.datasets.readers import IMAGES, ImageFiles, Reader, SceneArrays, Size
from restoration.image_files import list_images, normal
from restoration.image_opening import tell_once

SCENE_SIZE = (512, 960)  # (height, width) that SID and SMID are compared in
_NO_SCENES: tuple[str, ...] = ()


@dataclass(frozen=True)
class Where:
    """Where the files of a split were looked for.

    Attributes:
        base: the folder that holds `there` and `missing`, None where nothing of it was found.
        missing: what of the split is not in `base`.
    """

    base: Path | None
    there: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        return self.base is not None and not self.missing


@dataclass(frozen=True)
class Folders:
    """Pictures in two folders, or, with a part `*`, in two folders of each sequence.

    Attributes:
        lq, gt: below `above`.
        above: folders around them; a root may be any of these.
        pairs: published number of pairs; None where none is known.
        right: folder of the right views of a dual-pixel camera, whose left ones are in `lq`.
        bits: as `ImageFiles`.
        only: take the pictures that the list of this name has: `<only>_labels.npy` (places in natural order, the first
            is 1) or `<only>.txt` (a name of LQ a line) beside the folders.
        names: of LQ and GT, with the place of a picture, as `restoration.datasets.make` writes them.
        gap: how much further the numbers of GT are there.
    """

    lq: str
    gt: str
    above: str = ""
    pairs: int | None = None
    match: Match = "stem"
    right: str | None = None
    bits: Literal[8, 16] | None = None
    only: str | None = None
    names: tuple[str, str] = ("{:05d}.png", "{:05d}.png")
    gap: int = 0

    @property
    def reader(self) -> Reader:
        return ImageFiles(self.bits)

    def where(self, root: Path) -> Where:
        parts = (self.lq, self.gt, *([self.right] if self.right else []))
        return _first(root, self.above, parts)

    def open(self, base: Path, cache_bytes: int = CACHE_BYTES, check: bool = True) -> PairedFolder:
        lq, gt = (_place(base, part) for part in (self.lq, self.gt))
        match, found = pair_up(Side.of(lq), Side.of(gt), self.match)
        rights: Sequence[Path | None] = [None] * len(found)
        if self.right is not None:
            right = _place(base, self.right)
            files = sorted(Side.of(right).files, key=lambda named: natural(named[0]))
            if len(files) != len(found):
                raise DataError(
                    f"{lq} and {right} hold {len(found)} and {len(files)} pictures, left and right views of the same; "
                    "get both folders again, whole"
                )
            rights = [path for _, path in files]
        pairs = [Pair(*names, None, self.reader, right) for names, right in zip(found, rights, strict=True)]
        if self.only is not None:
            pairs = _chosen(base, self.only, pairs)
        return PairedFolder.of_pairs(lq, gt, match, pairs, cache_bytes, check)


@dataclass(frozen=True)
class FirstDigit:
    """Scenes whose number begins with one of `digits`."""

    digits: str

    def scenes(self, base: Path, there: Sequence[str]) -> list[str]:
        return [scene for scene in there if scene[0] in self.digits]


@dataclass(frozen=True)
class Among:
    """Scenes that are among `published`, or, with `others`, all but those.

    A list file of the user's, one of `files` in the folder, takes the place of `published`; what it lacks is told.
    """

    published: tuple[str, ...]
    files: tuple[str, ...]
    others: bool = False

    def scenes(self, base: Path, there: Sequence[str]) -> list[str]:
        listed = set(self.list_of(base))
        if absent := [] if self.others else sorted(listed - {*there}):
            tell_once(
                f"{base}: {len(absent)} of {len(listed)} scenes of the test are not there ({some(absent)}): figures "
                "are not comparable with published ones"
            )
        return [scene for scene in there if (scene in listed) != self.others]

    def list_of(self, base: Path) -> Sequence[str]:
        """Raises DataError for a list that names none or a scene twice."""
        file = next((path for name in self.files if (path := base / name).is_file()), None)
        if file is None:
            return self.published
        scenes = [line.split()[0] for line in _text(file).splitlines() if line.strip()]
        if not scenes:
            raise DataError(f"{file} names no scene; get the list again")
        if twice := [s for i, s in enumerate(scenes) if s in scenes[:i]]:
            raise DataError(f"{file} names {some(twice)} twice; get the list again")
        lacking = sorted({*self.published} - {*scenes})
        further = sorted({*scenes} - {*self.published})
        for what, which in (("lacks", lacking), ("has besides", further)):
            if which:
                tell_once(
                    f"{file} {what} {len(which)} scenes, against the published list of {len(self.published)} "
                    f"({some(which)}): figures are not comparable with published ones"
                )
        return scenes


@dataclass(frozen=True)
class Scenes:
    """Folders of .npy arrays, a folder a scene; every array of LQ belongs to the first one of the same scene of GT.

    Attributes:
        chosen: which scenes are of the split.
        size_hw: as `SceneArrays`.
        frames: at most so many arrays of each scene, the first ones; None for all.
        not_gt: words in the names of arrays that are no originals.
        leave_out: scenes that are not taken.
        numbers: scenes, as `restoration.datasets.make` writes them.
    """

    lq: str
    gt: str
    chosen: FirstDigit | Among
    above: str = ""
    pairs: int | None = None
    size_hw: Size | None = SCENE_SIZE
    frames: int | None = None
    not_gt: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = _NO_SCENES
    numbers: tuple[str, ...] = ()

    @property
    def reader(self) -> Reader:
        return SceneArrays(self.size_hw)

    def where(self, root: Path) -> Where:
        return _first(root, self.above, (self.lq, self.gt))

    def open(self, base: Path, cache_bytes: int = CACHE_BYTES, check: bool = True) -> PairedFolder:
        lq, gt = _place(base, self.lq), _place(base, self.gt)
        scenes = [s for s in self.chosen.scenes(base, _scenes_in(lq)) if s not in self.leave_out]
        if not scenes:
            raise DataError(f"{lq} has no scene of this split; get its folders again, or choose another split")
        named = [(scene, _arrays(lq / scene), self._original(gt / scene)) for scene in scenes]
        for what, empty in (
            (f"in {self.lq} has no .npy", [scene for scene, inputs, _ in named if not inputs]),
            (f"has no original in {gt}", [scene for scene, _, original in named if original is None]),
        ):
            if empty:
                raise DataError(
                    f"{lq}: {len(empty)} of {len(scenes)} scenes can't be used, each of them {what}: {some(empty)}; "
                    "get these folders again"
                )
        pairs = [
            Pair(f"{scene}/{normal(path.stem)}", path, original, None, self.reader)
            for scene, inputs, original in named
            for path in inputs[: self.frames]
            if original is not None
        ]
        return PairedFolder.of_pairs(lq, gt, "group", pairs, cache_bytes, check)

    def _original(self, folder: Path) -> Path | None:
        return next((p for p in _arrays(folder) if not any(word in p.name for word in self.not_gt)), None)


@dataclass(frozen=True)
class Listed:
    """Pairs that a list of files names, a line each: the original and the degraded picture, below the list's folder.

    Attributes:
        inside: the folder that holds the scenes, as `restoration.datasets.make` writes it.
        aliases: (folder in the list, its name on the disk) where they differ.
        scenes: that are of the split, as `make` writes them.
    """

    list: str
    inside: str
    pairs: int | None = None
    above: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    scenes: tuple[str, ...] = ()

    @property
    def reader(self) -> Reader:
        return IMAGES

    def where(self, root: Path) -> Where:
        return _first(root, self.above, (self.list, self.inside))

    def open(self, base: Path, cache_bytes: int = CACHE_BYTES, check: bool = True) -> PairedFolder:
        file = _place(base, self.list)
        pairs, gone = [], []
        for number, line in enumerate(_text(file).splitlines(), 1):
            if not line.strip():
                continue
            parts = line.split()
            if len(parts) != 2:
                raise DataError(
                    f"{file}:{number}: {line.strip()[:80]!r} is not the two paths of an original and its degraded "
                    "picture; get the list again"
                )
            gt, lq = (self._on_disk(base, part) for part in parts)
            gone += [str(path) for path in (gt, lq) if not path.is_file()]
            scene = PurePosixPath(parts[1]).parts[-3:-2] or ("",)
            pairs.append(Pair("/".join(filter(None, (normal(scene[0]), normal(lq.stem)))), lq, gt))
        if gone:
            raise DataError(f"{file} names {len(gone)} files that are not there: {some(gone)}; get them again")
        if not pairs:
            raise DataError(f"{file} names no pair; get the list again")
        self._tell_unlisted(file, pairs)
        place = _place(base, self.inside)
        return PairedFolder.of_pairs(place, place, "stem", pairs, cache_bytes, check)

    def _on_disk(self, base: Path, named: str) -> Path:
        path = base / named
        for listed, real in self.aliases:
            if not path.exists():
                path = Path(*(real if part == listed else part for part in path.parts))
        return path

    @staticmethod
    def _tell_unlisted(file: Path, pairs: Sequence[Pair]) -> None:
        """Lists hold whole scenes, so that a picture beside a listed one that is not in the list is a line lost."""
        listed = {pair.lq_path for pair in pairs}
        beside = [path for folder in {p.parent for p in listed} for path in list_images(folder) if path not in listed]
        if beside:
            names = some(sorted(f"{p.parent.parent.name}/{p.parent.name}/{p.name}" for p in beside))
            tell_once(
                f"{file} lacks {len(beside)} pictures of the scenes that it names ({names}): a line may be missing; "
                "get the list again"
            )


@dataclass(frozen=True)
class Loose:
    """Pictures without originals."""

    folder: str = "."
    above: str = ""
    pairs: int | None = None

    @property
    def reader(self) -> Reader:
        return IMAGES

    def where(self, root: Path) -> Where:
        return _first(root, self.above, (self.folder,))

    def pictures(self, base: Path) -> list[Path]:
        """Raises DataError: none."""
        found = list_images(_place(base, self.folder))
        if not found:
            raise DataError(f"{base} holds no image; give the folder of the pictures")
        return found

    def open(self, base: Path, cache_bytes: int = CACHE_BYTES, check: bool = True) -> PairedFolder:
        raise DataError(
            f"{base} is a set without originals: nothing can be trained on it or compared with it; restore it by "
            "`restorl restore` and score the results by `restorl score`"
        )


Source: TypeAlias = Folders | Scenes | Listed | Loose


def _first(root: Path, above: str, parts: tuple[str, ...]) -> Where:
    """The first folder that has any of the parts."""
    for base in _bases(root, above):
        there = tuple(part for part in parts if _is_there(base, part))
        if there:
            return Where(base, there, tuple(part for part in parts if part not in there))
    return Where(None)


def _is_there(base: Path, part: str) -> bool:
    fixed, star, inner = part.partition(f"/{EACH}/")
    place = _find(base, fixed)
    if place is None or not star:
        return place is not None
    return any((place / scene / inner).is_dir() for scene in _scenes_in(place))


def _bases(root: Path, above: str) -> Iterator[Path]:
    parts = PurePosixPath(above).parts if above else ()
    for i in range(len(parts) + 1):
        found = _find(root, "/".join(parts[i:])) if parts[i:] else root
        if found is not None and found.is_dir():
            yield found


def _find(folder: Path, part: str) -> Path | None:
    """`part` below `folder` in whatever case it is written there."""
    path = folder
    for name in PurePosixPath(part).parts:
        if (path / name).exists():
            path = path / name
            continue
        try:
            names = os.listdir(path)
        except OSError:
            return None
        same = sorted(n for n in names if n.lower() == name.lower())
        if not same:
            return None
        path = path / same[0]
    return path


def _place(base: Path, part: str) -> Path:
    """`part`, which is there but for what stands behind a `*`."""
    fixed, star, inner = part.partition(f"/{EACH}")
    return (_find(base, fixed) or base / fixed) / Path(f"{star}{inner}".lstrip("/"))


def _scenes_in(folder: Path) -> list[str]:
    with os.scandir(folder) as listing:
        return sorted(e.name for e in listing if not e.name.startswith(".") and e.is_dir())


def _arrays(folder: Path) -> list[Path]:
    """Files .npy of a folder, sorted by name; none where there is no folder."""
    try:
        with os.scandir(folder) as listing:
            names = sorted(e.name for e in listing if e.name.endswith(".npy") and not e.name.startswith("."))
    except FileNotFoundError:
        return []
    return [folder / name for name in names]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text; give the list as UTF-8") from error


def _chosen(base: Path, name: str, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that the user's list of that name has, in its order of the set."""
    labels, text = base / f"{name}_labels.npy", base / f"{name}.txt"
    if labels.is_file():
        try:
            places = np.load(labels, allow_pickle=False).ravel()
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{labels}: can't be read as an array of numbers ({error}); get it again") from error
        if places.dtype.kind not in "iu" or not places.size or places.min() < 1 or places.max() > len(pairs):
            span = f"from {places.min()} to {places.max()}" if places.size else "without any"
            raise DataError(
                f"{labels}: {places.dtype} {span}, where places from 1 to {len(pairs)} are wanted; it belongs to "
                "another set of pictures"
            )
        return [pairs[i - 1] for i in sorted({int(place) for place in places})]
    if text.is_file():
        wanted = [normal(os.path.splitext(line.strip())[0]) for line in _text(text).splitlines() if line.strip()]
        if unknown := sorted({*wanted} - {pair.image_id for pair in pairs}):
            raise DataError(f"{text} names pictures that are not there: {some(unknown)}; give the names of the inputs")
        return [pair for pair in pairs if pair.image_id in wanted]
    raise FileNotFoundError(
        f"{base} has no list of its {name} pictures, which no repository holds; put {labels.name} of Restormer's "
        f"download there, or {text.name} with a name a line"
    )
