"""What supervised fine-tuning learns from: crops of paired folders, or of photographs degraded on the fly.

A batch depends on its seed alone, not on the batches before it, so that an interrupted training goes on with exactly
the data it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from restoration.datasets.opening import open_split, wrong_set
from restoration.datasets.paired import DataError, Match, PairedFolder, crop_pair, random_crop
from restoration.image_ends import undecodable
from restoration.image_opening import tell_once
from restoration.images import ImageError
from restoration.pretrain.pairs import DegradedCrops, PairRecipe

_HELDOUT_SEED = 1
_DRAWS = 20  # of pictures that can't be read, one after the other, before the folder is given up


@dataclass(frozen=True)
class TrainingSet:
    """One of several sets that are trained on together.

    Attributes:
        root, train, set, match: as those of `SftData`.
        weight: how often it is drawn from, relative to the others, whatever their numbers of pictures.
    """

    root: Path
    train: str = "train"
    set: str | None = None
    match: Match | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"data.sets: weight={self.weight} of {self.root}: a number above 0; leave the set out")
        if problem := wrong_set(self.set, self.match, self.train, self.train):
            raise ValueError(problem.replace("data.", "data.sets: ", 1))


@dataclass(frozen=True)
class SftData:
    """Either `root` or `photos`.

    Attributes:
        root: paired folders `root`/`train`/{input,target} or another public layout; `heldout` is never trained on.
        match: how LQ and GT are paired: by `stem`, by the `digits` in their names, by `sorted` order, or by `group`,
            several LQ of one GT (`1_1.jpg`, `1_2.jpg` and `1.jpg`); null: by their names, never `sorted`.
        photos: clean photographs, all read into memory, in `photos`/train and `photos`/heldout.
        pairs: how those are degraded.
        embeddings: folder of <image id>.safetensors, what the model sees of each picture of `root` besides.
        cache_mb: decoded images of `root` kept in memory, 10^6 bytes.
        set: a public set by its name (docs/data.md), of which `root` is the folder, `train` and `heldout` are splits.
        sets: sets that are trained on in the place of `root`'s `train`; those that are held out stay `root`'s.
    """

    root: Path | None = None
    train: str = "train"
    heldout: str = "test"
    match: Match | None = None
    photos: Path | None = None
    pairs: PairRecipe = field(default_factory=PairRecipe)
    embeddings: Path | None = None
    cache_mb: int = 1024
    set: str | None = None
    sets: tuple[TrainingSet, ...] = ()

    def __post_init__(self) -> None:
        if (self.root is None) == (self.photos is None):
            raise ValueError("data.root or data.photos: give one of them, paired folders or photographs to degrade")
        if self.embeddings is not None and self.root is None:
            raise ValueError(
                "data.embeddings: photographs that are cut and degraded on the fly have none; give data.root"
            )
        if self.cache_mb < 0:
            raise ValueError(f"data.cache_mb={self.cache_mb}: 0 or above")
        if self.set is not None and self.root is None:
            raise ValueError(f"data.set={self.set}: give data.root, the folder it was unpacked in")
        if problem := wrong_set(self.set, self.match, self.train, self.heldout):
            raise ValueError(problem)
        if self.sets and self.root is None:
            raise ValueError("data.sets: give data.root, too, whose held-out pictures the training is watched by")
        if self.sets and self.embeddings is not None:
            raise ValueError("data.sets with data.embeddings: pictures of two sets may have one id; train on one set")


class TrainingPairs(Protocol):
    def batch(self, size: int, seed: Sequence[int]) -> tuple[Tensor, Tensor, Sequence[str]]:
        """(lq, gt, image ids), float32 [size, 3, crop, crop] in [0, 1] each, on the CPU; photographs have no ids."""
        ...


@dataclass(frozen=True)
class _FolderCrops:
    folder: PairedFolder
    crop: int

    def batch(self, size: int, seed: Sequence[int]) -> tuple[Tensor, Tensor, Sequence[str]]:
        rng = np.random.default_rng(seed)
        lq, gt, image_ids = zip(*(self.one(rng) for _ in range(size)), strict=True)
        return torch.stack(lq), torch.stack(gt), image_ids

    def one(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, str]:
        """A crop of a random pair; one that is damaged where its headers don't show it is told, and another drawn."""
        for _ in range(_DRAWS):
            pair = self.folder.pairs[rng.integers(len(self.folder))]
            try:
                crop, flip = random_crop(pair.size, self.crop, rng), bool(rng.random() < 0.5)
                lq, gt = self.folder.load(pair.image_id)
            except ValueError as error:  # also of one whose header was not read at the start
                tell_once(f"{error}; the pair {pair.image_id} is left out of the training")
                continue
            return *crop_pair(lq, gt, crop, flip), pair.image_id
        raise DataError(f"{self.folder.lq}: {_DRAWS} pictures in a row can't be read, the last of them {pair.lq_path}")


@dataclass(frozen=True)
class _MixedCrops:
    """Each pair of a batch is drawn from one of the sets, by their shares."""

    sets: tuple[_FolderCrops, ...]
    shares: tuple[float, ...]

    def batch(self, size: int, seed: Sequence[int]) -> tuple[Tensor, Tensor, Sequence[str]]:
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.sets), size, p=self.shares)
        lq, gt, image_ids = zip(*(self.sets[i].one(rng) for i in chosen), strict=True)
        return torch.stack(lq), torch.stack(gt), image_ids


@dataclass(frozen=True)
class _PhotoPairs:
    drawn: DegradedCrops

    def batch(self, size: int, seed: Sequence[int]) -> tuple[Tensor, Tensor, Sequence[str]]:
        self.drawn.reseed(seed)
        return *self.drawn.batch(size), ()


@dataclass(frozen=True)
class HeldOutPicture:
    image_id: str
    size: tuple[int, int]


@dataclass(frozen=True)
class HeldOut:
    """The held-out pairs that a training is watched by; `restoration.evaluate.Pairs`."""

    pairs: tuple[HeldOutPicture, ...]
    load: Callable[[str], tuple[Tensor, Tensor]]


def training_pairs(data: SftData, crop: int, seed: int) -> TrainingPairs:
    """Random crops of side `crop`, mirrored at random (photographs turned too).

    Raises:
        FileNotFoundError: no such folder, or no photograph in it.
        DataError: folders that don't form pairs, or images smaller than the crop.
    """
    if data.root is None:
        assert data.photos is not None
        return _PhotoPairs(DegradedCrops(data.photos / "train", data.pairs, crop, seed))
    if data.sets:
        # Of a cache that is shared out none is larger than one set alone would have.
        sets = tuple(_crops(s, crop, data.cache_mb * 10**6 // len(data.sets)) for s in data.sets)
        whole = math.fsum(s.weight for s in data.sets)
        return _MixedCrops(sets, tuple(s.weight / whole for s in data.sets))
    return _crops(TrainingSet(data.root, data.train, data.set, data.match), crop, data.cache_mb * 10**6)


def _crops(of: TrainingSet, crop: int, cache_bytes: int) -> _FolderCrops:
    folder = open_split(of.root, of.train, of.match, of.set, cache_bytes)
    folder.require_side(crop)
    return _FolderCrops(folder, crop)


def held_out(data: SftData, count: int, crop: int) -> HeldOut:
    """At most `count` pairs, evenly chosen, cut to at most `crop` pixels a side from the middle (0: whole images).

    Photographs give `count` degraded crops of `crop` pixels (0: 256), always the same.

    Raises:
        FileNotFoundError, DataError: as `training_pairs`.
        ImageError: one of them can't be decoded, which is tried at once.
    """
    if data.root is None:
        assert data.photos is not None
        side = crop or 256
        lq, gt = DegradedCrops(data.photos / "heldout", data.pairs, side, _HELDOUT_SEED).batch(count)
        names = [f"{i:04d}" for i in range(count)]
        pictures = {name: (a, b) for name, a, b in zip(names, lq, gt, strict=True)}
        return HeldOut(tuple(HeldOutPicture(name, (side, side)) for name in names), pictures.__getitem__)
    folder = open_split(data.root, data.heldout, data.match, data.set, 0)
    count = min(count, len(folder))
    chosen = [folder.pairs[i * len(folder) // count] for i in range(count)]
    if damaged := undecodable(file for p in chosen for file in p.files):
        raise ImageError("; ".join(str(error) for error in damaged[:5]))
    windows = {p.image_id: _middle(p.size, crop) for p in chosen}

    def load(image_id: str) -> tuple[Tensor, Tensor]:
        return crop_pair(*folder.load(image_id), windows[image_id], flip=False)

    return HeldOut(tuple(HeldOutPicture(name, window[2:]) for name, window in windows.items()), load)


def _middle(size: tuple[int, int], crop: int) -> tuple[int, int, int, int]:
    height, width = (min(side, crop) if crop else side for side in size)
    return (size[0] - height) // 2, (size[1] - width) // 2, height, width
