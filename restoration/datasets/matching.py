"""How the files of two folders find each other: degraded pictures (LQ) and their originals (GT)."""

from __future__ import annotations

import gc
import re
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from restoration.image_files import image_name, list_images, normal

Match = Literal["stem", "digits", "sorted", "group"]
Named = tuple[str, Path]  # a picture's name and its file

_NUMBERS = re.compile(r"(\d+)")
EACH = "*"  # a part of a path that stands for every folder there


class DataError(ValueError):
    """Folders that don't form pairs; the message names them and says what is missing."""


@contextmanager
def many_objects() -> Iterator[None]:
    """Without Python's search for cycles, which goes through all that is there again and again while lists grow.

    Names and paths have no cycles; with a heap as large as torch's it is half of the time of opening a large set.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@dataclass(frozen=True)
class Side:
    """The pictures of one side; `place` is where they lie, for people."""

    place: Path
    files: tuple[Named, ...]

    @classmethod
    def of(cls, place: Path) -> Side:
        """All pictures under `place`, a folder or, with a part `*`, a folder of each sequence.

        Of train/*/blur the file train/GOPR0372/blur/000047.png is called GOPR0372/000047.

        Raises:
            FileNotFoundError: no such folder.
        """
        if EACH not in place.parts or place.exists():
            return cls(place, tuple((image_name(path, place), path) for path in list_images(place)))
        at = place.parts.index(EACH)
        base, inner = Path(*place.parts[:at]), Path(*place.parts[at + 1 :])
        if not base.is_dir():
            raise FileNotFoundError(f"{base} is no folder; give the one that holds the sequences")
        folders = [f for f in sorted(base.iterdir()) if not f.name.startswith(".") and (f / inner).is_dir()]
        found = ((f.name, f / inner, path) for f in folders for path in list_images(f / inner))
        return cls(place, tuple((f"{normal(name)}/{image_name(path, at)}", path) for name, at, path in found))


def pair_up(lq: Side, gt: Side, match: Match | None) -> tuple[Match, list[tuple[str, Path, Path]]]:
    """(match, [(name of the LQ picture, its file, that of the GT)]), in natural order of the names.

    Args:
        match: as `PairedFolder`; None takes "stem" where any stems are equal, else what leaves the fewest alone.

    Raises:
        DataError: an unknown match, a side without pictures, two of one name, a picture without partner.
    """
    if match is not None and match not in get_args(Match):
        raise DataError(f"match={match!r}: choose one of {', '.join(get_args(Match))}")
    for side, what in ((lq, "degraded"), (gt, "clean")):
        if not side.files:
            raise DataError(f"{side.place} holds no image; it must hold the {what} ones")
    match = match or _by_names(lq, gt)
    found = _Found.by(match, lq, gt)
    if found.alone:
        raise DataError(_without_partner(lq, gt, match, found))
    return match, sorted(found.pairs, key=lambda pair: natural(pair[0]))


def alone(lq: Side, gt: Side, match: Match) -> tuple[list[str], list[str]]:
    """Names of the pictures without partner, of each side.

    Raises:
        DataError: names that can't be told apart by `match`, or one without digits.
    """
    found = _Found.by(match, lq, gt)
    return found.lq_alone, found.gt_alone


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key under which a2 comes before a10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _NUMBERS.split(name) if part]


def some(names: Sequence[str], shown: int = 5) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@dataclass(frozen=True)
class _Found:
    """Pairs, and the names of pictures without partner."""

    pairs: list[tuple[str, Path, Path]]
    lq_alone: list[str]
    gt_alone: list[str]

    @property
    def alone(self) -> int:
        return len(self.lq_alone) + len(self.gt_alone)

    @classmethod
    def by(cls, match: Match, lq: Side, gt: Side) -> _Found:
        """Raises DataError for two pictures of one side that can't be told apart, or one without digits."""
        if match == "sorted":
            _keyed(lq, "stem")
            left, right = (sorted(side.files, key=lambda named: natural(named[0])) for side in (lq, gt))
            pairs = [(name, path, other) for (name, path), (_, other) in zip(left, right, strict=False)]
            return cls(pairs, [n for n, _ in left[len(right) :]], [n for n, _ in right[len(left) :]])
        ours, theirs = (_keyed(side, "digits" if match == "digits" else "stem") for side in (lq, gt))
        partner = {key: _original(key, theirs) if match == "group" else key for key in ours}
        taken = set(partner.values())
        return cls(
            [(name, path, theirs[p][1]) for key, (name, path) in ours.items() if (p := partner[key]) in theirs],
            [name for key, (name, _) in ours.items() if partner[key] not in theirs],
            [name for key, (name, _) in theirs.items() if key not in taken],
        )


def _by_names(lq: Side, gt: Side) -> Match:
    if not {name for name, _ in lq.files}.isdisjoint(name for name, _ in gt.files):
        return "stem"
    # Of "stem", which finds none, an error tells most where nothing fits.
    return min(("digits", "group", "stem"), key=lambda match: _left_alone(match, lq, gt))  # type: ignore[arg-type]


def _left_alone(match: Match, lq: Side, gt: Side) -> float:
    """How many pictures have no partner."""
    try:
        return _Found.by(match, lq, gt).alone
    except DataError:
        return float("inf")


def _without_partner(lq: Side, gt: Side, match: Match, found: _Found) -> str:
    problem = "LQ/GT count mismatch" if len(lq.files) != len(gt.files) else "unmatched images"
    count = f"{lq.place} holds {len(lq.files)} images, {gt.place} {len(gt.files)}"
    sides = (("GT", found.lq_alone), ("LQ", found.gt_alone))
    alone = "; ".join(f"without {what}: {some(names)}" for what, names in sides if names)
    fitting = [m for m in ("stem", "digits", "group") if m != match and not _left_alone(m, lq, gt)]  # type: ignore[arg-type]
    if fitting:
        todo = f"{fitting[0]} pairs them all: set data.match={fitting[0]} in the recipe, or --match {fitting[0]}"
    elif len(lq.files) == len(gt.files):
        todo = "rename them, or where both sides have the same order set data.match=sorted (--match sorted)"
    else:
        todo = "give each its partner, or move it out of the folder"
    return f"{problem}: {count}; {alone} (matched by {match}); {todo}"


def _keyed(side: Side, match: Literal["stem", "digits"]) -> dict[str, Named]:
    keyed: dict[str, Named] = {}
    for name, path in side.files:
        key = _digits(name) if match == "digits" else name
        if not key:
            raise DataError(
                f"{path} has no number in its name, so digits don't match it; choose another data.match (--match)"
            )
        if key in keyed:
            other = keyed[key][1]
            if match == "stem" and other.with_suffix("") != path.with_suffix(""):
                raise DataError(
                    f"{other} and {path} are one name in two forms of Unicode (composed and decomposed): {key!r}; "
                    "keep one, or rename one"
                )
            raise DataError(
                f"{other} and {path} have the same {match}; keep one, or choose another data.match (--match)"
            )
        keyed[key] = name, path
    return keyed


def _original(name: str, originals: Container[str]) -> str:
    """The original of one of its degraded versions: its name ends at one of the underscores, the last that fits.

    Of 926_10 this is 926, of sub/0001_0.8_0.2 it is sub/0001; where none fits, the name itself.
    """
    folder, slash, stem = name.rpartition("/")
    while stem:
        if f"{folder}{slash}{stem}" in originals:
            return f"{folder}{slash}{stem}"
        stem = stem.rpartition("_")[0]
    return name


def _digits(name: str) -> str:
    return ",".join(str(int(number)) for number in re.findall(r"\d+", name))
