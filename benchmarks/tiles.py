"""What tiles do to a picture, beside the same picture restored whole: python -m benchmarks.tiles

Ramps, a gradient, a flat sky and rainy photographs of the demo's held-out ones are restored by the demo's model three
times: whole, in tiles that share the picture's statistics (`restoration.statistics`), and in tiles that don't, each a
picture of its own ("before"). The noise is the same in all three.

- `step`: the largest difference of the mean level (of 255) of neighbouring strips of 32 pixels, along either side.
- `to_whole`: PSNR in dB of the tiled picture against the whole one; `to_gt`: of each against the ground truth.
- `alone`: the steps of a horizontal ramp where one network alone sees tiles, without sharing, and the others the whole.
- `seconds`: of the processor for the horizontal ramp.

The bar: `step` after at most twice the whole picture's where the picture has no edges; `to_gt` at most 0.3 dB below the
whole picture's on photographs. Above it may be: networks trained on small crops do better on small tiles.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.report import RESULTS, write
from restoration.base_models import load, sampler_of
from restoration.base_models.interface import BaseModel, Condition, SamplerSettings
from restoration.colour import ColourFix
from restoration.degradations import degrade, seeded_rng
from restoration.images import read_image
from restoration.restore import restore, seeded_generator
from restoration.tiling import Grid, Tiling
from restoration.transition import transition

SIZE, TILING = (160, 256), Tiling(96, 32)  # height, width
ISSUE_SIZE, ISSUE_TILING = (400, 640), Tiling(192, 64)
STRIP = 32
LOW, HIGH = 60, 200  # levels of the ramps
PHOTOS = ("chelsea", "china", "coffee")
AT_MOST, WITHIN_DB = 2.0, 0.3


def ramp(height: int, width: int, down: float, across: float) -> Tensor:
    """Grey levels from `LOW` to `HIGH` along a direction, on the 8-bit grid; float32 [3, height, width] in [0, 1]."""
    y, x = torch.linspace(0, down, height)[:, None], torch.linspace(0, across, width)
    return ((LOW + (HIGH - LOW) * (y + x)).round() / 255).expand(3, height, width).contiguous()


def between(height: int, width: int, top: tuple[int, ...], bottom: tuple[int, ...]) -> Tensor:
    """A vertical gradient of colours, levels of 255, on the 8-bit grid."""
    first, last = (torch.tensor(c, dtype=torch.float32)[:, None, None] for c in (top, bottom))
    return ((first + (last - first) * torch.linspace(0, 1, height)[:, None]).round() / 255).repeat(1, 1, width)


def smooth(height: int, width: int) -> dict[str, Tensor]:
    return {
        "ramp, horizontal": ramp(height, width, 0, 1),
        "ramp, vertical": ramp(height, width, 1, 0),
        "ramp, diagonal": ramp(height, width, 0.5, 0.5),
        "gradient, blue to orange": between(height, width, (40, 70, 160), (230, 170, 90)),
        "sky, flat": between(height, width, (150, 190, 230), (165, 200, 232)),
    }


def rainy(photos: Path, name: str, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The middle of a photograph, in rain and clean."""
    image = read_image(photos / f"{name}.jpg")
    top, left = ((side - wanted) // 2 for side, wanted in zip(image.shape[-2:], (height, width), strict=True))
    gt = image[:, top : top + height, left : left + width]
    lq = degrade(gt.permute(1, 2, 0).numpy(), "rain", 0.7, seeded_rng(name, 0))
    return torch.from_numpy(lq).permute(2, 0, 1).contiguous(), gt


def largest_step(image: Tensor) -> float:
    """In levels of 255, between neighbouring strips of `STRIP` pixels; image [3, H, W] in [0, 1]."""
    steps = []
    for along in (0, 1):
        line = image.mean(0).mean(along) * 255
        strips = line[: len(line) // STRIP * STRIP].unflatten(0, (-1, STRIP)).mean(1)
        steps.append(float(strips.diff().abs().max()))
    return max(steps)


def psnr(image: Tensor, reference: Tensor) -> float:
    return -10 * math.log10(float((image - reference).square().mean()) + 1e-12)


@contextmanager
def each_tile_for_itself() -> Iterator[None]:
    """Inside, tiles share no statistics."""
    with mock.patch.object(Grid, "samples", lambda *_: []):
        yield


def compared(
    model: BaseModel,
    own: SamplerSettings,
    lq: Tensor,
    tiling: Tiling = TILING,
    colour: ColourFix = "none",
    gt: Tensor | None = None,
) -> dict[str, Any]:
    sampler = replace(own, colour_fix=colour)

    def restored(tiling: Tiling | None) -> Tensor:
        return restore(model, lq, sampler, seeded_generator("tiles", 0), tiling=tiling)

    whole, after = restored(None), restored(tiling)
    with each_tile_for_itself():
        before = restored(tiling)
    pictures = {"whole": whole, "before": before, "after": after}
    result: dict[str, Any] = {"size": list(lq.shape[-2:]), "tile": tiling.pixels}
    if gt is None:
        result["step"] = {"input": largest_step(lq)} | {k: largest_step(v) for k, v in pictures.items()}
        result["met"] = result["step"]["after"] <= AT_MOST * result["step"]["whole"]
    else:
        result["to_gt"] = {"input": psnr(lq, gt)} | {k: psnr(v, gt) for k, v in pictures.items()}
        result["met"] = result["to_gt"]["after"] >= result["to_gt"]["whole"] - WITHIN_DB
    result["to_whole"] = {k: psnr(v, whole) for k, v in pictures.items() if k != "whole"}
    return result


@torch.no_grad()
def alone(model: Any, own: SamplerSettings, lq: Tensor, tiling: Tiling) -> dict[str, float]:
    """Steps of the ramp `lq` where one network alone sees tiles (DiffBIR's: its condition is text and a latent)."""
    grid = Grid.of(*lq.shape[-2:], tiling, model.size_multiple)
    latents = grid.shrunk(model.vae_factor)
    condition = model.condition(lq[None])

    def chain(denoise: Callable[..., Tensor]) -> Tensor:
        generator = seeded_generator("tiles", 0)
        x_t, steps = torch.randn(condition.latent.shape, generator=generator), model.schedule(own).steps
        for step in steps:
            last = step is steps[-1] or not step.is_decision
            noise = torch.zeros_like(x_t) if last else torch.randn(x_t.shape, generator=generator)
            x_t = transition(step, denoise(step, x_t), x_t, noise=noise).action
        return model.decode(x_t)[0]

    def whole(step: Any, x_t: Tensor) -> Tensor:
        return model.denoise(x_t, step.timestep, condition, 1.0)

    def tiled(step: Any, x_t: Tensor) -> Tensor:
        def of_tile(tile: Tensor, i: int) -> Tensor:
            top, left = latents.corners[i]
            latent = condition.latent[..., top : top + latents.tile, left : left + latents.tile]
            return model.denoise(tile, step.timestep, Condition(condition.clean, latent, condition.text), 1.0)

        return latents.map(of_tile, x_t)

    latent = grid.map(lambda t, _: model.encode(t), condition.clean)
    return {
        "cleaner": largest_step(grid.map(lambda t, _: model.cleaner(t).clamp(0, 1), lq[None])[0]),
        "cleaner, whole": largest_step(condition.clean[0]),
        "autoencoder": largest_step(latents.map(lambda t, _: model.decode(t), latent)[0]),
        "autoencoder, whole": largest_step(model.decode(condition.latent)[0]),
        "denoiser": largest_step(chain(tiled)),
        "denoiser, whole": largest_step(chain(whole)),
    }


def seconds(model: BaseModel, own: SamplerSettings, lq: Tensor, tiling: Tiling) -> dict[str, float]:
    """Of the processor, for a restoration in tiles."""

    def taken() -> float:
        start = time.process_time()
        restore(model, lq, own, seeded_generator("tiles", 0), tiling=tiling)
        return time.process_time() - start

    with each_tile_for_itself():
        before = taken()
    after = taken()
    return {"before": before, "after": after, "ratio": after / before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    parser.add_argument("--photos", type=Path, default=Path("data/photos/heldout"))
    parser.add_argument("--output", type=Path, default=RESULTS / "tiles.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model)
    own = sampler_of(arguments.model, model)
    pictures = smooth(*SIZE)
    of_issue = ramp(*ISSUE_SIZE, 0, 1)
    rows: dict[str, Any] = {}
    result: dict[str, Any] = {"pictures": rows}

    def add(name: str, row: dict[str, Any]) -> None:
        """What is there so far is kept."""
        rows[name] = row
        write(arguments.output, result | {"met": all(row["met"] for row in rows.values())})
        print(f"{name}: {json.dumps(row)}", flush=True)

    for name, picture in pictures.items():
        add(name, compared(model, own, picture))
    for name in PHOTOS:
        lq, gt = rainy(arguments.photos, name, *SIZE)
        add(f"{name}, rain", compared(model, own, lq, gt=gt))
    result["alone"] = alone(model, own, pictures["ramp, horizontal"], TILING)
    result["seconds"] = seconds(model, own, pictures["ramp, horizontal"], TILING)
    add("ramp, horizontal, wavelet", compared(model, own, pictures["ramp, horizontal"], colour="wavelet"))
    add("ramp, 640 x 400", compared(model, own, of_issue, ISSUE_TILING))


if __name__ == "__main__":
    main()
