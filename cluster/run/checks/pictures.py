"""The pictures of a run against crops, the model's sizes, and the embeddings that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config.recipe import RunConfig
from cluster.config.tree import Problem
from cluster.run.checks.model import Facts
from cluster.run.flow import Size, rolled_sizes
from restoration.datasets.paired import PairedFolder
from restoration.evaluate import evenly
from restoration.image_ends import undecodable
from restoration.image_files import find_named


@dataclass(frozen=True)
class Pictures:
    """Sizes of the pictures of a run, in any order, and their ids."""

    train: Sequence[Size]
    heldout: Sequence[Size]
    ids: Sequence[str] = ()

    @classmethod
    def of(cls, train: PairedFolder, heldout: PairedFolder) -> Pictures:
        ids = [*train.image_ids, *heldout.image_ids]
        return cls(train.known_sizes, [p.size for p in heldout.pairs], ids)


def crops(config: RunConfig, facts: Facts, sizes: Sequence[Size]) -> Iterator[Problem]:
    """Crops against the training pictures and the model's multiple."""
    crop, multiple = config.rollout.crop, facts.size_multiple
    smallest = min(sizes, key=min)
    limit = facts.side_limit or max(map(max, sizes))
    largest = min(min(smallest), limit) // multiple * multiple
    if not largest:
        what = f"the smallest training picture has {_wh(smallest)} pixels, the model takes multiples of {multiple}"
        yield Problem("data.root", what, "leave out pictures below that")
        return
    whole = rolled_sizes(config.model_copy(update={"rollout": replace(config.rollout, crop=0)}), sizes, multiple)
    fits = f"{largest} is the largest crop that fits"
    if len(whole) == 1 and max(whole[0]) <= limit:
        fits += f", and 0 takes whole pictures ({_wh(whole[0])})"
    if crop < 0:
        yield Problem("rollout.crop", f"{crop} pixels", f"give a multiple of {multiple}, or 0 for whole pictures")
    elif crop > min(smallest):
        small = sum(min(size) < crop for size in sizes)
        what = (
            f"{crop} pixels don't fit into {small} of {len(sizes)} training pictures, the smallest of {_wh(smallest)}"
        )
        yield Problem("rollout.crop", what, fits)
    elif crop % multiple:
        near = [n for n in (crop // multiple * multiple, -(-crop // multiple) * multiple) if 0 < n <= largest]
        what = f"{crop}: {facts.kind} works on multiples of {multiple} pixels"
        yield Problem("rollout.crop", what, f"choose {' or '.join(map(str, near))}")
    elif (side := crop or max(map(max, whole))) > limit:
        yield Problem("rollout.crop", f"{crop}: {facts.kind} knows sides up to {limit}, here are {side}", fits)
    elif not crop and len(whole) > 1 and (count := config.rollout.images_per_batch) > 1:
        what = (
            f"0 takes whole pictures, of {len(whole)} sizes from {_wh(whole[0])} to {_wh(whole[-1])}, and "
            f"rollout.images_per_batch={count} are denoised together"
        )
        yield Problem("rollout.crop", what, f"set rollout.images_per_batch=1, or a crop (at most {largest})")


def embeddings(config: RunConfig, image_ids: Sequence[str]) -> Iterator[Problem]:
    """A file for each picture, where pictures have embeddings of their own."""
    if (folder := config.data.embeddings) is None:
        return
    if not Path(folder).is_dir():
        yield Problem("data.embeddings", f"{folder} is no folder", "give the one with <image id>.safetensors")
    elif missing := [i for i in image_ids if not find_named(folder, f"{i}.safetensors").is_file()]:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        what = f"{folder} has no file for {len(missing)} of {len(image_ids)} pictures ({first})"
        yield Problem("data.embeddings", what, "make them, or leave data.embeddings out")


def _wh(size: Size) -> str:
    return f"{size[1]}x{size[0]}"


def damaged(config: RunConfig, heldout: PairedFolder) -> Iterator[Problem]:
    """Pictures that would be evaluated and can't be decoded. Of those to train on a run leaves out what can't."""
    chosen = evenly(heldout.pairs, config.evaluation.limit)
    for error in undecodable(file for pair in chosen for file in pair.files):
        yield Problem("data.heldout", str(error), "mend the file or take its pair out")
