"""Compare restored images with their originals: PSNR, SSIM and no-reference scores per image."""

from __future__ import annotations

import csv
import math
import os
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.datasets.paired import Match, PairedFolder
from restoration.images import crop_back, images_within, pad_to_multiple, to_uint8
from restoration.metrics import DEFAULT_PROTOCOL, protocol
from restoration.precision import autocast
from restoration.restore import sample, seeded_generator
from restoration.tiling import Tiling
from restoration.transfer import to_device

Pixels: TypeAlias = NDArray[np.uint8]
Figures: TypeAlias = NDArray[np.float64] | NDArray[np.float32]
ScoreFunction = Callable[[Pixels], NDArray[np.float32]]
Item = TypeVar("Item")
PIXELS = 8 * 512 * 512  # that images restored together may have
ImageSink = Callable[[str, Pixels, Pixels, Pixels], None]


class Picture(Protocol):
    """A degraded image and its original, both of `size` (height, width)."""

    @property
    def image_id(self) -> str: ...

    @property
    def size(self) -> tuple[int, int]: ...


class Pairs(Protocol):
    """What is evaluated, such as a `PairedFolder`; `load` gives (lq, gt), float32 [3, H, W] in [0, 1] each."""

    @property
    def pairs(self) -> Sequence[Picture]: ...

    def load(self, image_id: str) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Row:
    """Figures of one image, in the order of the CSV's columns.

    `values` holds psnr, ssim and one column a scorer for the restored image; the same with `input_` before them
    for the degraded one, and `gt_<scorer>` for the original.
    """

    image_id: str
    values: dict[str, float]


def blocks(
    pairs: Pairs, batch: int = 8, pixels: int = PIXELS, limit: int | None = None, multiple: int = 1
) -> list[list[str]]:
    """The image ids that go through model and scorers together: of equal size, in the order of `pairs` within a size.

    A function of all pairs, so that a block is the same whoever evaluates it; an evaluation can be spread by giving
    each worker some of the blocks (`evaluate_pairs`, only).

    Args:
        batch, pixels: at most so many images, with so many pixels together; one image always goes.
        limit: so many images, evenly spread over the pairs; None for all.
        multiple: that sides are padded to.
    """
    by_size: dict[tuple[int, int], list[str]] = {}
    for pair in evenly(pairs.pairs, limit):
        by_size.setdefault(pair.size, []).append(pair.image_id)
    found = []
    for size, ids in by_size.items():
        together = min(batch, images_within(pixels, *(-(-side // multiple) * multiple for side in size)))
        found += [ids[i : i + together] for i in range(0, len(ids), together)]
    return found


def evenly(items: Sequence[Item], count: int | None) -> Sequence[Item]:
    """`count` of the items, the first always among them, as evenly spread as whole places can be; None for all.

    Raises:
        ValueError: a count below 1.
    """
    if count is None or count >= len(items):
        return items
    if count < 1:
        raise ValueError(f"{count} of {len(items)} images: at least 1")
    return [items[i * len(items) // count] for i in range(count)]


@torch.no_grad()
def evaluate_pairs(
    model: BaseModel | None,
    pairs: Pairs,
    sampler: SamplerSettings,
    scorers: Mapping[str, ScoreFunction],
    protocol_name: str = DEFAULT_PROTOCOL,
    seed: int = 0,
    batch: int = 8,
    *,
    device: torch.device | str = "cpu",
    known: Sequence[Row] = (),
    on_image: ImageSink | None = None,
    progress: Callable[[int, int], None] | None = None,
    only: Collection[str] | None = None,
    pixels: int = PIXELS,
    limit: int | None = None,
    dtype: torch.dtype = torch.float32,
    tiling: Tiling | None = None,
) -> list[Row]:
    """Restore every pair's LQ and measure it; rows in the order of `pairs`.

    Args:
        model: on `device` already; None measures the degraded images as if they were results.
        scorers: name (a column) to a function from uint8 [N, H, W, 3] to float32 [N].
        seed: with the image id it fixes the noise, so neither order nor batch changes an image's noise.
        batch, pixels, limit: as `blocks`, which says what goes through model and scorers together.
        known: rows of an earlier evaluation of the same pairs, scorers and protocol; their `input_` and `gt_`
            figures, which no model changes, are taken over.
        on_image: called with (image_id, lq, restored, gt), uint8 [H, W, 3] each.
        progress: called with (done, total) after each batch.
        only: ids of the images to evaluate; the rows of parts are those of the whole, to the last bit where each part
            holds whole `blocks`, else to what a network's batch changes in rounding.
        dtype: that the networks compute in (autocast); chain, pictures and figures are float32.
        tiling: None restores each picture whole (`restore.sample`).

    Raises:
        ValueError: unknown protocol, a scorer that gives another number of values or one that is not finite, an id in
            `only` that is no pair's or that `limit` leaves out.
        ImageError: a file that can't be read.
    """
    chosen = protocol(protocol_name)
    reference = {row.image_id: row.values for row in known}
    multiple = 1 if model is None else model.size_multiple
    planned = blocks(pairs, batch, pixels, limit, multiple)
    if only is not None:
        wanted = set(only)
        if unknown := sorted(wanted - {image_id for block in planned for image_id in block}):
            raise ValueError(f"{unknown[0]} is not among the images that are evaluated ({len(unknown)} such ids)")
        planned = [[image_id for image_id in block if image_id in wanted] for block in planned]
    total = sum(map(len, planned))
    rows: dict[str, Row] = {}
    for block in filter(None, planned):
        lq, gt = (torch.stack(images) for images in zip(*(pairs.load(i) for i in block), strict=True))
        restored = lq if model is None else _restored(model, lq, block, sampler, seed, device, dtype, tiling)
        inputs, results, originals = to_uint8(lq), to_uint8(restored), to_uint8(gt)
        table: dict[str, Figures] = {
            "psnr": chosen.psnr(results, originals),
            "ssim": chosen.ssim(results, originals),
        }
        table |= {name: _scores(name, score, results, block) for name, score in scorers.items()}
        fixed = _reference_figures(chosen.name, scorers, inputs, originals, block, reference)
        for i, image_id in enumerate(block):
            rows[image_id] = Row(image_id, {k: float(v[i]) for k, v in (table | fixed).items()})
            if on_image is not None:
                on_image(image_id, inputs[i], results[i], originals[i])
        if progress is not None:
            progress(len(rows), total)
    return [rows[pair.image_id] for pair in pairs.pairs if pair.image_id in rows]


def _restored(
    model: BaseModel,
    lq: Tensor,
    ids: Sequence[str],
    sampler: SamplerSettings,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype,
    tiling: Tiling | None,
) -> Tensor:
    """Like `lq`, float32 [B, 3, H, W] on the CPU."""
    padded = pad_to_multiple(lq, model.size_multiple)
    place = padded if tiling is not None else to_device(padded, device)  # with tiles only these go to the device
    with autocast(device, dtype):
        generators = [seeded_generator(i, seed) for i in ids]
        restored = sample(model, place, sampler, generators, tiling, device, ids)
    return crop_back(restored.float(), *lq.shape[-2:]).cpu()


def evaluate_folders(
    restored: Path,
    gt: Path,
    scorers: Mapping[str, ScoreFunction],
    protocol_name: str = DEFAULT_PROTOCOL,
    match: Match = "stem",
    on_image: ImageSink | None = None,
) -> list[Row]:
    """Measure finished results against originals: psnr, ssim, each scorer, and `gt_<scorer>`; no `input_` columns.

    `on_image` is called as that of `evaluate_pairs`, with the results as lq, too.

    Raises:
        FileNotFoundError, DataError, ImageError: as `PairedFolder`.
        ValueError: as `evaluate_pairs`.
    """
    pairs = PairedFolder(restored, gt, match)
    rows = evaluate_pairs(None, pairs, SamplerSettings(), scorers, protocol_name, batch=1, on_image=on_image)
    return [Row(r.image_id, {k: v for k, v in r.values.items() if not k.startswith("input_")}) for r in rows]


def mean_values(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of each column over the images.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no rows to take a mean of")
    return {name: math.fsum(row.values[name] for row in rows) / len(rows) for name in rows[0].values}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line an image, first column image_id; the file appears whole.

    Raises:
        ValueError: no rows, or rows of different columns.
        OSError: the file can't be written.
    """
    if not rows or any(row.values.keys() != rows[0].values.keys() for row in rows):
        raise ValueError(f"{path}: the rows must exist and have equal columns")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # a longer name than that of `path` may not fit
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image_id", *rows[0].values])
            writer.writerows([row.image_id, *(row.values[k] for k in rows[0].values)] for row in rows)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_csv(path: Path) -> list[Row]:
    """Rows that `write_csv` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no column image_id or a value that is no number.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    if not lines or "image_id" not in lines[0]:
        raise ValueError(f"{path} is no evaluation: it has no rows with a column image_id")
    return [Row(line["image_id"], {k: float(v) for k, v in line.items() if k != "image_id"}) for line in lines]


def _reference_figures(
    protocol_name: str,
    scorers: Mapping[str, ScoreFunction],
    inputs: Pixels,
    originals: Pixels,
    ids: Sequence[str],
    known: Mapping[str, dict[str, float]],
) -> dict[str, Figures]:
    """The columns that no model changes, from `known` when it has all of them for every image."""
    names = ["input_psnr", "input_ssim", *(f"input_{s}" for s in scorers), *(f"gt_{s}" for s in scorers)]
    if all(image_id in known and known[image_id].keys() >= set(names) for image_id in ids):
        return {name: np.array([known[i][name] for i in ids]) for name in names}
    chosen = protocol(protocol_name)
    figures: list[Figures] = [
        chosen.psnr(inputs, originals),
        chosen.ssim(inputs, originals),
        *(_scores(name, score, inputs, ids) for name, score in scorers.items()),
        *(_scores(name, score, originals, ids) for name, score in scorers.items()),
    ]
    return dict(zip(names, figures, strict=True))


def _scores(name: str, score: ScoreFunction, images: Pixels, ids: Sequence[str]) -> NDArray[np.float32]:
    values = np.asarray(score(images), dtype=np.float32)
    if values.shape != (len(images),):
        raise ValueError(f"scorer {name} gave values of shape {values.shape} for {len(images)} images")
    bad = [image_id for image_id, value in zip(ids, values, strict=True) if not np.isfinite(value)]
    if bad:
        raise ValueError(f"scorer {name} gave a value that is not finite for {', '.join(bad)}")
    return values
