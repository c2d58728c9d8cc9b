"""Compare restored images with their originals: PSNR, SSIM and no-reference scores per image."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.datasets.ahead import Ahead
from restoration.datasets.paired import Match, PairedFolder
from restoration.figures import LESS_MEMORY, PICTURE, FigureTable, Pixels, Row, ScoreFunction, fixed_names
from restoration.images import crop_back, images_within, pad_to_multiple, to_uint8
from restoration.metrics import DEFAULT_PROTOCOL, protocol
from restoration.precision import autocast
from restoration.restore import sample, seeded_generator
from restoration.tiling import Tiling
from restoration.transfer import to_device
from restoration.trouble import free_memory, told
from restoration.whole_files import written_whole

Item = TypeVar("Item")
PIXELS = 8 * 512 * 512  # that images restored together may have
ImageSink = Callable[[str, Pixels, Pixels, Pixels], None]
INPUT = "input_"  # before the names of figures of degraded images
MISSING = "missing"  # the CSV's column of reasons


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
    tolerant: bool = False,
    on_row: Callable[[Row], None] | None = None,
    inputs_too: bool = True,
) -> list[Row]:
    """Restore every pair's LQ and measure it; rows in the order of `pairs`.

    A figure that can't be had of a picture (too small for the metric or the scorer, a value that is not finite) is NaN
    in its row, with the reason, and the others are there.

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
        tolerant: a picture that can't be read or restored, or that a scorer fails on, has a row of NaN with the
            reason; else its error ends the evaluation, but for a scorer's ValueError.
        on_row: called with each row when it is there.
        inputs_too: measure the degraded images besides, in columns `input_`.

    Raises:
        ValueError: unknown protocol, an id in `only` that is no pair's or that `limit` leaves out.
        TypeError: a scorer that gives another number of values than images, unless `tolerant`.
        ImageError: a file that can't be read, unless `tolerant`.
    """
    chosen = protocol(protocol_name)
    reference = {row.image_id: row for row in known}
    multiple = 1 if model is None else model.size_multiple
    planned = blocks(pairs, batch, pixels, limit, multiple)
    if only is not None:
        wanted = set(only)
        if unknown := sorted(wanted - {image_id for block in planned for image_id in block}):
            raise ValueError(f"{unknown[0]} is not among the images that are evaluated ({len(unknown)} such ids)")
        planned = [[image_id for image_id in block if image_id in wanted] for block in planned]
    total = sum(map(len, planned))
    rows: dict[str, Row] = {}
    fixed = [name for name in fixed_names(scorers) if inputs_too or not name.startswith(INPUT)]
    ahead = Ahead(pairs.load)

    def evaluated(block: Sequence[str]) -> list[tuple[Row, Pixels, Pixels, Pixels]]:
        lq, gt = (torch.stack(images) for images in zip(*map(ahead, block), strict=True))
        restored = lq if model is None else _restored(model, lq, block, sampler, seed, device, dtype, tiling)
        originals, results = to_uint8(gt), to_uint8(restored)
        inputs = results if restored is lq else to_uint8(lq)
        table = FigureTable(block, (Exception,) if tolerant else (ValueError,))
        table.of_result(chosen, scorers, "", results, originals, (restored, gt))
        if not table.take_over(fixed, reference):
            if inputs_too:
                table.of_result(chosen, scorers, INPUT, inputs, originals, (lq, gt))
            table.of_scorers(scorers, "gt_", originals)
        return [(row, inputs[i], results[i], originals[i]) for i, row in enumerate(table.rows())]

    planned = list(filter(None, planned))
    with ahead:
        for place, block in enumerate(planned):
            ahead.expect(planned[place + 1] if place + 1 < len(planned) else ())
            made, failed = _each_alone(evaluated, block) if tolerant else (evaluated(block), {})
            for row, *images in made:
                if on_image is not None:
                    on_image(row.image_id, *images)
            nothing = dict.fromkeys([*chosen.figures, *scorers, *fixed], math.nan)
            new = [row for row, *_ in made] + [Row(i, dict(nothing), {PICTURE: why}) for i, why in failed.items()]
            for row in new:
                rows[row.image_id] = row
                if on_row is not None:
                    on_row(row)
            if progress is not None:
                progress(len(rows), total)
    return [rows[pair.image_id] for pair in pairs.pairs if pair.image_id in rows]


def _each_alone(
    evaluated: Callable[[Sequence[str]], list[Item]], block: Sequence[str]
) -> tuple[list[Item], dict[str, str]]:
    """What `evaluated` gives of the block, of its images one by one where that fails; and why it failed, by image."""
    try:
        return evaluated(block), {}
    except Exception as error:
        free_memory(error)
        if len(block) == 1:
            return [], {block[0]: told(block[0], error, LESS_MEMORY)}
    parts = [_each_alone(evaluated, [image_id]) for image_id in block]
    return [item for items, _ in parts for item in items], {i: why for _, failed in parts for i, why in failed.items()}


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
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """`evaluate_results` of the files of two folders.

    Raises:
        FileNotFoundError, DataError: as `PairedFolder`.
        ValueError: as `evaluate_pairs`.
    """
    pairs = PairedFolder(restored, gt, match, check=False)
    return evaluate_results(pairs, scorers, protocol_name, on_image, on_row)


def evaluate_results(
    pairs: Pairs,
    scorers: Mapping[str, ScoreFunction],
    protocol_name: str = DEFAULT_PROTOCOL,
    on_image: ImageSink | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Measure finished results against originals: psnr, ssim, each scorer, and `gt_<scorer>`; no `input_` columns.

    Args:
        pairs: the results in the place of degraded images.
        on_image: called as that of `evaluate_pairs`, with the results as lq, too.

    A file that can't be read, and a pair of two sizes, has a row of NaN with the reason.

    Raises:
        ValueError: as `evaluate_pairs`.
    """
    sampler = SamplerSettings()
    return evaluate_pairs(
        *(None, pairs, sampler, scorers, protocol_name),
        batch=1,
        tolerant=True,
        on_image=on_image,
        on_row=on_row,
        inputs_too=False,
    )


def mean_values(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of each column over the images that have the figure (`counts`); NaN where none has.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("no rows to take a mean of")
    finite = {name: [v for row in rows if not math.isnan(v := row.values[name])] for name in rows[0].values}
    return {name: math.fsum(values) / len(values) if values else math.nan for name, values in finite.items()}


def scene_means(rows: Sequence[Row]) -> dict[str, float]:
    """The mean over scenes of each scene's mean, which papers of SID and SMID give beside that over all images.

    A scene is the folder in an image's id; a figure that no image of a scene has leaves that scene out.

    Raises:
        ValueError: no rows.
    """
    scenes: dict[str, list[Row]] = {}
    for row in rows:
        scenes.setdefault(_scene(row), []).append(row)
    return mean_values([Row(scene, mean_values(of)) for scene, of in scenes.items()] if rows else rows)


def has_scenes(rows: Sequence[Row]) -> bool:
    """Whether the images lie in folders of scenes; some layouts of such sets have all in one."""
    return any(map(_scene, rows))


def _scene(row: Row) -> str:
    return row.image_id.rpartition("/")[0]


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many images have each figure."""
    return {name: sum(not math.isnan(row.values[name]) for row in rows) for name in (rows[0].values if rows else ())}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line an image, first column image_id; the file appears whole.

    A figure that is missing is an empty cell; if any is, the last column has the reasons, as JSON.

    Raises:
        ValueError: no rows, or rows of different columns.
        OSError: the file can't be written.
    """
    if not rows or any(row.values.keys() != rows[0].values.keys() for row in rows):
        raise ValueError(f"{path}: the rows must exist and have equal columns")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        reasons = any(row.missing for row in rows)
        writer.writerow(["image_id", *rows[0].values, *([MISSING] if reasons else [])])
        for row in rows:
            cells = ["" if math.isnan(v := row.values[name]) else v for name in rows[0].values]
            told_of = json.dumps(row.missing, ensure_ascii=False) if row.missing else ""
            writer.writerow([row.image_id, *cells, *([told_of] if reasons else [])])


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
    names = [name for name in lines[0] if name not in ("image_id", MISSING)]
    return [
        Row(
            line["image_id"],
            {name: float(line[name] or "nan") for name in names},
            json.loads(line.get(MISSING) or "{}"),
        )
        for line in lines
    ]
