"""What a set on the disk really is: counts against the published ones, pairs, sizes, depth, and pictures twice."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from restoration.datasets.layouts import Folders, Loose
from restoration.datasets.matching import DataError, some
from restoration.datasets.opening import locate, other_count, public_set
from restoration.datasets.paired import Pair
from restoration.datasets.readers import IMAGES, ImageFiles, Reader
from restoration.image_files import list_images
from restoration.images import ImageError, Pixels
from restoration.metrics import protocol

Progress = Callable[[str, int, int], None]
File = tuple[Path, Reader]
TRAIN = "train"


@dataclass(frozen=True)
class Content:
    """What a file holds; `digest` is of its pixels, so that a copy in another lossless file has the same."""

    digest: str
    bits: int
    size: tuple[int, int]  # (height, width)


@dataclass(frozen=True)
class SplitReport:
    """A split of a set.

    Attributes:
        pairs: those that were found, of a set without originals its pictures.
        sizes, depths: (height, width) and bits a channel -> number of files.
        problems: what makes figures wrong or stops a run.
        remarks: what a user should know.
    """

    split: str
    layout: str
    place: Path
    pairs: int
    published: int | None
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    depths: Counter[int] = field(default_factory=Counter)
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    shown: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class SetReport:
    """A set, split by split; `problems` are of the set as a whole."""

    name: str
    root: Path
    splits: tuple[SplitReport, ...]
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems and not any(split.problems for split in self.splits)

    def lines(self) -> list[str]:
        """For people."""
        of = public_set(self.name)
        measured = f"protocol {of.protocol}: {protocol(of.protocol).told}" if of.protocol else "no originals"
        lines = [f"{of.title} ({of.task}) in {self.root}", f"  {measured}", f"  licence: {of.licence}"]
        for split in self.splits:
            published = f", published {split.published:,}" if split.published else ""
            what = "pairs" if of.has_originals else "pictures"
            lines.append(f"{split.split}: {split.pairs:,} {what}{published}; layout {split.layout}, {split.place}")
            lines.append(f"  sizes: {_most(split.sizes)}; depth: {_depths(split.depths)}")
            lines += [f"  problem: {text}" for text in split.problems]
            lines += [f"  note: {text}" for text in split.remarks]
        lines += [f"problem: {text}" for text in self.problems]
        lines += [f"note: {text}" for text in self.remarks]
        return lines


def check_set(
    name: str, root: Path, also: Sequence[Path] = (), progress: Progress | None = None, shown: int = 4
) -> SetReport:
    """Decode every file of the set once and tell what is wrong with it.

    Args:
        also: folders of other pictures that are trained on, held against the test splits, too; one of theirs that
            can't be read is a problem, as it may be one of the test.
        progress: called with (what, files done, files in all).
        shown: pairs of each split that the report names for a contact sheet.

    Raises:
        ValueError: no set of that name.
        FileNotFoundError: no such folder, or no split of the set in it.
        DataError: a folder of `also` without pictures.
    """
    of, root = public_set(name), Path(root)
    others = {folder: list_images(folder) for folder in map(Path, also)}  # first: the rest may take an hour
    if empty := [folder for folder, files in others.items() if not files]:
        raise DataError(f"{empty[0]} holds no image; give the folder of the pictures that you train on besides")
    held = dict[File, Content]()
    splits, contents, absent = list[SplitReport](), dict[str, dict[Path, Content]](), dict[str, str]()
    nothing: FileNotFoundError | None = None
    for split in of.splits:
        try:
            report, contents[split] = _check_split(name, root, split, held, progress, shown)
            splits.append(report)
        except FileNotFoundError as error:
            nothing = nothing or error
            absent[split] = str(error)
        except (DataError, ImageError) as error:
            splits.append(SplitReport(split, "-", root, 0, of.published(split), problems=(str(error),)))
    if not splits and nothing is not None:
        raise nothing
    trained, problems = dict(contents.get(TRAIN, {})), list[str]()
    for folder, files in others.items():
        found, errors = _contents([(path, IMAGES) for path in files], str(folder), held, progress)
        trained |= found
        problems += errors
    problems += [
        text
        for split in contents
        if split != TRAIN and "/" not in split and (text := _overlap(split, contents[split], trained))
    ]
    return SetReport(
        name, root, tuple(splits), tuple(problems), tuple(f"{k}: not there; {v}" for k, v in absent.items())
    )


def _check_split(
    name: str, root: Path, split: str, held: dict[File, Content], progress: Progress | None, shown: int
) -> tuple[SplitReport, dict[Path, Content]]:
    found = locate(name, root, split)
    source, told = found.source, list[str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(source, Loose):
            pairs = [Pair(path.stem, path, path) for path in source.pictures(found.base)]
        else:
            pairs = list(source.open(found.base, 0, check=False).pairs)
    told += [str(w.message) for w in caught if w.category is UserWarning]
    files = dict.fromkeys(file for pair in pairs for file in pair.files)
    contents, problems = _contents(files, f"{name} {split}", held, progress)
    if count := other_count(name, split, source.pairs, len(pairs)):
        told.append(count)
    if not isinstance(source, Loose):
        problems += _of_pairs(pairs, contents)
    if isinstance(source, Folders) and source.bits == 8 and (shallow := sum(c.bits == 8 for c in contents.values())):
        told.append(
            f"{shallow} of {len(contents)} files have 8 bits a channel, the published ones 16, of which the upper half "
            "is taken; files that were rounded to 8 differ by a level"
        )
    report = SplitReport(
        split,
        found.layout.name,
        found.base,
        len(pairs),
        source.pairs,
        Counter(content.size for content in contents.values()),
        Counter(content.bits for content in contents.values()),
        tuple(problems),
        tuple(told),
        tuple(pairs[i * len(pairs) // min(shown, len(pairs))] for i in range(min(shown, len(pairs)))),
    )
    return report, contents


def _contents(
    files: Collection[File], what: str, held: dict[File, Content], progress: Progress | None
) -> tuple[dict[Path, Content], list[str]]:
    """What each file holds, several decoded at once, and the errors of those that can't be.

    Args:
        held: of files that were decoded already, of splits that are parts of others; it gets the new ones.
    """
    todo = [file for file in files if file not in held]

    def look(item: File) -> Content | ImageError:
        path, reader = item
        try:
            # 8 bits of 16 are taken later: what is asked here is the file's own depth.
            return _content((IMAGES if reader == ImageFiles(8) else reader).pixels(path))
        except ImageError as error:
            return error

    errors = list[str]()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, (file, seen) in enumerate(zip(todo, pool.map(look, todo), strict=True), 1):
            if isinstance(seen, Content):
                held[file] = seen
            else:
                errors.append(str(seen))
            if progress is not None:
                progress(what, done, len(todo))
    if len(errors) > 5:
        errors = [*errors[:5], f"and {len(errors) - 5} more files that can't be read"]
    return {file[0]: held[file] for file in files if file in held}, errors


def _content(pixels: Pixels) -> Content:
    digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    digest.update(repr((pixels.shape, pixels.dtype.str)).encode())
    return Content(digest.hexdigest(), 8 * pixels.dtype.itemsize, (pixels.shape[0], pixels.shape[1]))


def _of_pairs(pairs: Sequence[Pair], contents: dict[Path, Content]) -> list[str]:
    problems = []
    known = [(p, [contents[path] for path, _ in p.files if path in contents]) for p in pairs]
    whole = [(pair, held) for pair, held in known if len(held) == len(pair.files)]
    if sizes := [f"{p.image_id} ({', '.join(map(_wh, held))})" for p, held in whole if len({c.size for c in held}) > 1]:
        problems.append(f"{len(sizes)} pairs of pictures of other sizes: {some(sizes)}")
    if depths := [p.image_id for p, held in whole if len({c.bits for c in held}) > 1]:
        problems.append(f"{len(depths)} pairs of pictures of other depth, 8 and 16 bits a channel: {some(depths)}")
    if same := [p.image_id for p, held in whole if len({c.digest for c in held}) == 1]:
        problems.append(f"{len(same)} degraded pictures are their own originals: {some(same)}")
    return problems


def _overlap(split: str, tested: dict[Path, Content], trained: dict[Path, Content]) -> str | None:
    by_digest = defaultdict(list)
    for path, content in trained.items():
        by_digest[content.digest].append(path)
    both = [f"{path} = {by_digest[c.digest][0]}" for path, c in tested.items() if c.digest in by_digest]
    if not both:
        return None
    return (
        f"{len(both)} pictures of {split} are among those that are trained on ({some(both, 2)}): figures on them prove "
        "nothing; take them out of the training"
    )


def _wh(content: Content) -> str:
    return f"{content.size[1]}x{content.size[0]}"


def _most(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none"
    shown = [f"{w}x{h} ({count:,})" for (h, w), count in sizes.most_common(3)]
    return ", ".join(shown) + (f" and {len(sizes) - 3} others" if len(sizes) > 3 else "")


def _depths(depths: Counter[int]) -> str:
    return ", ".join(f"{bits} bits ({count:,})" for bits, count in sorted(depths.items())) or "none"
