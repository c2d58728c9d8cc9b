"""Opening the public sets of `registry` by name, or any two folders."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from restoration.datasets.layouts import Folders, Listed, Loose, Source, Where
from restoration.datasets.matching import DataError, Match, Side, many_objects, some
from restoration.datasets.paired import CACHE_BYTES, PairedFolder, discover
from restoration.datasets.readers import IMAGES
from restoration.datasets.registry import SETS, Layout, PublicSet

PAIRED = "paired"  # any two folders, as `discover` finds them


@dataclass(frozen=True)
class Located:
    """A split that was found below a root."""

    layout: Layout
    source: Source
    base: Path


def public_set(name: str) -> PublicSet:
    """The set of that name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in SETS:
        near = get_close_matches(name.lower().replace("-", "_"), SETS, 1)
        meant = f"did you mean {near[0]}? There are " if near else "choose one of "
        raise ValueError(f"no public set named {name!r}; {meant}{', '.join(SETS)}; or any two folders: {PAIRED}")
    return SETS[name]


def locate(name: str, root: Path, split: str) -> Located:
    """Where the split of a set lies below `root`.

    Raises:
        ValueError: unknown set or split.
        FileNotFoundError: no such folder, or nothing of the split in it; the message says what was looked for.
        DataError: a part of it only; the message says what is missing.
    """
    of, root = public_set(name), Path(root)
    if split not in of.splits:
        raise ValueError(f"{name} has no split {split!r}; choose one of {', '.join(of.splits)}")
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; give the one that holds {of.title}")
    partly: Where | None = None
    for layout in of.layouts:
        if (source := layout.splits.get(split)) is None:
            continue
        found = source.where(root)
        if found.whole and found.base is not None:
            return Located(layout, source, found.base)
        partly = partly or (found if found.base else None)
    if partly is not None:
        raise DataError(
            f"{partly.base} holds {', '.join(partly.there)} of {of.title}, but not {', '.join(partly.missing)}; "
            "get the set again, whole"
        )
    looked = "; or ".join(_looked_for(layout.splits[split]) for layout in of.layouts if split in layout.splits)
    inside = some(sorted(p.name for p in root.iterdir() if not p.name.startswith("."))) or "nothing"
    raise FileNotFoundError(
        f"{root} holds nothing of {of.title}'s {split}; looked for {looked}; it holds {inside}; "
        "give the folder that the set was unpacked in"
    )


def open_set(
    name: str, root: Path, split: str, cache_bytes: int = CACHE_BYTES, *, check: bool = True, tell: bool = True
) -> PairedFolder:
    """The pairs of a split.

    Args:
        tell: warn of another number of pairs than published.

    Raises:
        ValueError, FileNotFoundError, DataError: as `locate`, or files that don't form pairs.
        ImageError: a file whose header can't be read.
    """
    found = locate(name, root, split)
    with many_objects():
        pairs = found.source.open(found.base, cache_bytes, check)
    if tell and (problem := other_count(name, split, found.source.pairs, len(pairs))):
        warnings.warn(f"{found.base}: {problem}", stacklevel=2)
    return pairs


def other_count(name: str, split: str, published: int | None, count: int) -> str | None:
    """What to tell of a number of pairs that is not the published one."""
    if published is None or count == published:
        return None
    return (
        f"{count} pairs of {public_set(name).title}'s {split}, the published set has {published}: figures are not "
        "comparable with published ones"
    )


def open_split(
    root: Path, split: str, match: Match | None = None, name: str | None = None, cache_bytes: int = CACHE_BYTES
) -> PairedFolder:
    """A split of the set `name`, or, without one (or `paired`), two folders as `discover` finds them.

    Raises:
        ValueError, FileNotFoundError, DataError, ImageError: as `open_set` and `discover`.
    """
    if name is None or name == PAIRED:
        return discover(root, split, match, cache_bytes)
    return open_set(name, root, split, cache_bytes)


def with_results(data: PairedFolder, folder: Path) -> PairedFolder:
    """The originals of `data`, and in the place of its degraded pictures the results in `folder`, named as those.

    Raises:
        FileNotFoundError: no such folder.
        DataError: a picture has no result there, or several; the message lists the first and what is there instead.
    """
    files = Side.of(Path(folder)).files
    found = dict(files)
    if len(found) < len(files):
        several = Counter(name for name, _ in files)
        twice = sorted(path.relative_to(folder).as_posix() for name, path in files if several[name] > 1)
        raise DataError(
            f"{folder} holds several results of one name ({some(twice)}), and only one of them can be measured; keep "
            "one of each"
        )
    lacking = [pair.image_id for pair in data.pairs if pair.image_id not in found]
    if lacking:
        others = sorted(found.keys() - {*data.image_ids})
        raise DataError(
            f"{folder} has no result of {len(lacking)} of {len(data)} pictures ({some(lacking)}); it holds "
            f"{len(found)} pictures{f', such as {some(others, 2)}' if others else ''}; results are named as inputs, "
            "in folders like theirs"
        )
    pairs = [
        replace(p, lq_path=found[p.image_id], lq_right=None, lq_reader=IMAGES, known_size=None) for p in data.pairs
    ]
    return PairedFolder.of_pairs(Path(folder), data.gt, data.match, pairs, check=False)


def wrong_set(name: str | None, match: Match | None, train: str, heldout: str) -> str | None:
    """What is wrong with `data.set` of a recipe beside its other settings, as an error says it; None if nothing."""
    if name is None or name == PAIRED:
        return None
    try:
        of = public_set(name)
    except ValueError as error:
        return f"data.set={name}: {error}"
    if not of.has_originals:
        return f"data.set={name}: a set without originals; nothing can be trained on it, take another"
    if match is not None:
        return f"data.match={match} with data.set={name}: a set knows its pairs; leave data.match out"
    for key, split in (("train", train), ("heldout", heldout)):
        if split not in of.splits:
            return f"data.{key}={split}: {name} has no such split; choose one of {', '.join(of.splits)}"
    return None


def as_markdown() -> str:
    """The table of docs/data.md."""
    lines = ["| `data.set` | set | task | protocol | pairs | layouts | licence |", "|-|-|-|-|-|-|-|"]
    for of in SETS.values():
        counts = [f"{split} {count:,}" for split in of.splits if (count := of.published(split))]
        layouts = "; ".join(f"{layout.name}: {_shown(layout)}" for layout in of.layouts)
        told = f"{of.title}: {of.source}" + (f". {of.rules}" if of.rules else "")
        protocol = f"`{of.protocol}`" if of.protocol else "scores only"
        lines.append(
            f"| `{of.name}` | {told} | {of.task} | {protocol} | {', '.join(counts) or '-'} | {layouts} | {of.licence} |"
        )
    return "\n".join(lines)


def _shown(layout: Layout) -> str:
    return ", ".join(dict.fromkeys(f"`{_looked_for(source)}`" for source in layout.splits.values()))


def _looked_for(source: Source) -> str:
    above = f"{source.above}/" if source.above else ""
    if isinstance(source, Listed):
        return f"{above}{{{source.list},{source.inside}}}"
    if isinstance(source, Loose):
        return f"{above}{source.folder}"
    right = f",{source.right}" if isinstance(source, Folders) and source.right else ""
    return f"{above}{{{source.lq}{right},{source.gt}}}"
