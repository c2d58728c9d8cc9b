"""Finished results beside their originals, other people's names included; nothing is decoded here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from restoration.datasets.matching import DataError, Match, Side, alone, pair_up, some
from restoration.datasets.paired import Pair, PairedFolder
from restoration.images import ImageError

# How results find their originals, tried in this order; places in order (`sorted`) are never guessed.
RULES: dict[Match, str] = {
    "stem": "equal names",
    "digits": "equal numbers in the names",
    "group": "the original's name and more behind an underscore",
}


def pair_results(folder: Path, gt: Path, match: Match | None = None) -> PairedFolder:
    """Each picture in `folder` with its original in `gt`, in the place of a degraded one.

    An id is the original's name, so that folders of other names have the same ids; where an original has several
    results it is the result's.

    Args:
        match: as `PairedFolder`; None takes the first of `RULES` that leaves no picture alone.

    Raises:
        FileNotFoundError: no such folder.
        DataError: a folder without pictures, or a picture without partner under every rule: the first of them are
            named, and what was tried.
    """
    results, originals = Side.of(Path(folder)), Side.of(Path(gt))
    for side, what in ((results, "results"), (originals, "originals")):
        if not side.files:
            raise DataError(f"{side.place} holds no image; it must hold the {what}")
    if match is None:
        match = _fitting(results, originals)
    names = {path: name for name, path in originals.files}
    _, found = pair_up(results, originals, match)
    several = max(Counter(original for _, _, original in found).values()) > 1
    pairs = [Pair(name if several else names[original], path, original) for name, path, original in found]
    return PairedFolder.of_pairs(Path(folder), Path(gt), match, pairs, 0, check=False)


def require_equal_sizes(data: PairedFolder) -> None:
    """Hold every result's header against its original's; one that can't be read is left to whoever decodes it.

    Raises:
        DataError: results of other sizes, the first of them named with both.
    """
    wrong = []
    for pair in data.pairs:
        try:
            sizes = [reader.size(path) for path, reader in pair.files]
        except ImageError:
            continue
        if len({*sizes}) > 1:
            wrong.append(f"{pair.image_id} ({_named(sizes[0])}, its original {_named(sizes[-1])})")
    if wrong:
        raise DataError(
            f"{data.lq}: {len(wrong)} of {len(data)} results have another size than their originals: {some(wrong)} "
            "(width x height); figures of resized results are no figures of the method: write results of the size "
            "of their originals"
        )


def require_same_pictures(sets: Sequence[PairedFolder]) -> None:
    """Raises DataError: results of other pictures than those of the first."""
    first = sets[0]
    for other in sets[1:]:
        if {*other.image_ids} != {*first.image_ids}:
            only = [some(sorted({*a.image_ids} - {*b.image_ids}), 3) for a, b in ((first, other), (other, first))]
            told = "; ".join(f"only {s.lq} has {names}" for s, names in zip((first, other), only, strict=True) if names)
            raise DataError(f"{first.lq} and {other.lq} are results of other pictures: {told}; give equal ones")


def _fitting(results: Side, originals: Side) -> Match:
    """Raises DataError: no rule pairs all; told by the rule that leaves the fewest alone."""
    best: tuple[list[str], list[str]] | None = None
    for rule in RULES:
        try:
            lonely = alone(results, originals, rule)
        except DataError:
            if rule == "stem":
                raise  # two files of one name are so under every rule
            continue
        if not any(lonely):
            return rule
        if best is None or sum(map(len, lonely)) < sum(map(len, best)):
            best = lonely
    assert best is not None
    extra, missing = best
    told = [f"{len(missing)} of {len(originals.files)} originals have no result ({some(missing)})"] if missing else []
    told += [f"{len(extra)} of {len(results.files)} results have no original ({some(extra)})"] if extra else []
    raise DataError(
        f"{results.place} has other names than the originals in {originals.place}: {'; '.join(told)}; tried "
        f"{', '.join(RULES.values())}; rename them or move them out, or, where both sides have one order, give "
        "--match sorted"
    )


def _named(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
