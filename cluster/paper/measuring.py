"""A cell is measured: every picture of a test restored and compared, and the result written."""

from __future__ import annotations

import platform
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.paper.cells import Cell, Measuring
from cluster.paper.results import PICTURES, Result, result_of, write_result
from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.datasets.opening import open_set, public_set
from restoration.evaluate import ScoreFunction, evaluate_pairs
from restoration.figures import Pixels
from restoration.images import write_image
from restoration.metrics import protocol
from restoration.tiling import Tiling

if TYPE_CHECKING:
    from restoration.metrics.published import Published

VERSIONS = ("restorl", "torch", "diffusers", "numpy", "opencv-python-headless")
Progress = Callable[[int, int], None]


def measure(
    cell: Cell,
    folder: Path,
    model: BaseModel,
    sampler: SamplerSettings,
    scorers: Mapping[str, ScoreFunction],
    measuring: Measuring,
    device: str,
    progress: Progress | None = None,
) -> Result:
    """Measure the cell and leave its result in `folder`; `model` is on `device` already.

    Raises:
        FileNotFoundError, DataError: its set, or no picture of it could be measured.
        CheckpointError: weights of LPIPS or FID that aren't there.
        OSError: the result can't be written.
    """
    began, of = time.monotonic(), public_set(cell.set)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of another number of pictures: the table has it
        pairs = open_set(cell.set, cell.root, cell.split, check=False)
    published = published_of(measuring)

    def see(image_id: str, lq: Pixels, restored: Pixels, gt: Pixels) -> None:
        if published is not None:
            published.see(image_id, lq, restored, gt)
        if measuring.pictures:
            file = folder / PICTURES / f"{image_id}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_image(file, restored)

    rows = evaluate_pairs(
        *(model, pairs, sampler, scorers, cell.protocol, cell.key.seed, measuring.batch),
        device=device,
        limit=cell.limit,
        on_image=see,
        progress=progress,
        tiling=Tiling(measuring.tile, min(Tiling.overlap, measuring.tile // 4)) if measuring.tile else None,
        tolerant=True,
        inputs_too=False,
    )
    if published is not None:
        rows = published.beside(rows)
    result = result_of(
        cell,
        rows,
        scale=str(cell.settings.get("scale", "")),
        told=protocol(cell.protocol).told,
        published=of.published(cell.split),
        per_scene=of.per_scene,
        of_sets={fid.name: fid.value() for fid in published.fid} if published is not None else {},
        seconds=time.monotonic() - began,
        versions=versions(),
    )
    write_result(folder, rows, result)
    return result


def published_of(measuring: Measuring) -> Published | None:
    """What measures LPIPS and FID, where one is wanted; torchvision, which it needs, takes seconds to import.

    Raises:
        CheckpointError: weights that are absent or of another network.
    """
    if measuring.lpips is None and measuring.fid is None:
        return None
    from restoration.metrics.published import Published

    return Published(measuring.lpips, measuring.fid)


def versions() -> dict[str, str]:
    """Of the program and of what it computes with, for the head of a table."""
    return {"python": platform.python_version()} | {name: version(name) for name in VERSIONS}
