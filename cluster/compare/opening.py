"""Folders of results become methods: their names, their pictures paired with the originals, what is wrong with them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.compare.measured import Method
from restoration.datasets.matching import DataError, Match
from restoration.datasets.opening import open_set, public_set, with_results
from restoration.datasets.paired import PairedFolder
from restoration.datasets.readers import Reader
from restoration.datasets.results import pair_results, require_equal_sizes, require_same_pictures
from restoration.image_opening import tell_once
from restoration.images import ImageError
from restoration.metrics import DEFAULT_PROTOCOL, protocol

INPUT = "input"


@dataclass(frozen=True)
class Named:
    """A folder under the name that tables call it."""

    name: str
    folder: Path


@dataclass(frozen=True)
class Originals:
    """What results are held against.

    Attributes:
        gt: folder of the originals or, of a public set, its root.
        lq: folder of the degraded pictures, which become a row of their own; of a public set its own are.
        set_name, split: a public set and which part of it.
        match: how names find each other; None tries `restoration.datasets.results.RULES`.
    """

    gt: Path
    lq: Path | None = None
    set_name: str | None = None
    split: str = "test"
    match: Match | None = None


def named(texts: Sequence[str]) -> list[Named]:
    """NAME=FOLDER or FOLDER each; one without a name is called by as much of its path's end as tells it from others.

    Raises:
        ValueError: two of one name.
    """
    given = [_split(text) for text in texts]
    paths = [folder for name, folder in given if not name]
    found = [Named(name or _short(folder, paths), folder) for name, folder in given]
    if twice := [name for name, count in Counter(n.name for n in found).items() if count > 1]:
        raise ValueError(f"two folders are called {twice[0]!r}: give them names, as in mine={found[0].folder}")
    if INPUT in {n.name for n in found}:
        raise ValueError(f"{INPUT!r} is what the degraded pictures are called: give the folder another name")
    return found


def open_methods(folders: Sequence[Named], of: Originals) -> list[Method]:
    """The degraded pictures first, if there are any, then the methods; all of the same pictures.

    Raises:
        ValueError: an unknown set or split, or folders of originals that go with no set.
        FileNotFoundError: no such folder.
        DataError: names without partner, results of other sizes, folders of other pictures.
    """
    if of.set_name is not None:
        if of.lq is not None or of.match is not None:
            raise ValueError(f"the set {of.set_name} knows its degraded pictures and pairs: leave out --lq and --match")
        data = _uncached(open_set(of.set_name, of.gt, of.split, check=False))
        found = [Method(INPUT, data, is_input=True)]
        found += [Method(n.name, _uncached(with_results(data, n.folder))) for n in folders]
    else:
        found = [] if of.lq is None else [Method(INPUT, pair_results(of.lq, of.gt, of.match), is_input=True)]
        found += [Method(n.name, pair_results(n.folder, of.gt, of.match)) for n in folders]
    for method in found:
        require_equal_sizes(method.data)
    require_same_pictures([method.data for method in found])
    return found


def protocols_of(given: Sequence[str], set_name: str | None) -> list[str]:
    """The given ones, else the set's own, else the default; each once.

    Raises:
        ValueError: an unknown protocol or set.
    """
    own = public_set(set_name).protocol if set_name is not None else None
    names = list(dict.fromkeys(given)) or [own or DEFAULT_PROTOCOL]
    return [protocol(name).name for name in names]


def require_depth(methods: Sequence[Method], protocols: Sequence[str]) -> None:
    """Hold the depth of the first pictures against protocols of 16 bits.

    Results of 8 bits are told, once, as theirs are figures of rounded results.

    Raises:
        DataError: originals of 8 bits: they were cut, or are read as 8.
    """
    deep = [name for name in protocols if protocol(name).depth == "float_16"]
    if not deep:
        return
    for method in methods:
        *views, original = method.data.pairs[0].files
        if _bits(*original) == 8:
            raise DataError(
                f"{original[0]}: 8 bits a channel, and {deep[0]} takes originals of 16: take the files as they were "
                "published (a program that copied them has cut them), or --protocol dpdd_float_8"
            )
        if _bits(*views[0]) == 8:
            tell_once(
                f"{method.data.lq}: results of 8 bits a channel under {deep[0]}: theirs are figures of rounding, too"
            )


def _bits(path: Path, reader: Reader) -> int | None:
    """A channel's; None of a file that can't be read, which is told when it is measured."""
    try:
        return 8 * reader.pixels(path).dtype.itemsize
    except ImageError:
        return None


def _split(text: str) -> tuple[str, Path]:
    name, sign, folder = text.partition("=")
    return ("", Path(text)) if not sign or Path(text).is_dir() else (name, Path(folder))


def _short(folder: Path, others: Sequence[Path]) -> str:
    parts = folder.resolve().parts
    rest = [other.resolve().parts for other in others if other.resolve().parts != parts]
    for count in range(1, len(parts) + 1):
        end = parts[-count:]
        if all(other[-count:] != end for other in rest):
            # A part that all share at the end, as `test` of a/test and b/test, tells nothing.
            return end[0] if count > 1 and all(other[-count:][1:] == end[1:] for other in rest) else "/".join(end)
    return folder.name


def _uncached(data: PairedFolder) -> PairedFolder:
    """Each picture is read once a method: decoded ones need not stay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is told of them was told when the set was opened
        return PairedFolder.of_pairs(data.lq, data.gt, data.match, data.pairs, 0, check=False)
