"""Run a base model's chain: on a batch, on one image of any size, on a file or folder; whole or in tiles."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from restoration.activation_memory import warn_of_whole
from restoration.base_models.interface import BaseModel, Condition, SamplerSettings
from restoration.colour import match_colour
from restoration.image_files import IMAGE_SUFFIXES, UNREAD_SUFFIXES, image_name, list_images, normal
from restoration.images import ImageError, crop_back, pad_to_multiple, read_with_alpha, write_image
from restoration.statistics import Statistics, given, sampling
from restoration.tiling import Grid, Pieces, Tiling
from restoration.transfer import to_device
from restoration.transition import Step, transition
from restoration.trouble import EXPECTED, free_memory, is_memory, told

OnEstimate = Callable[[Step, Tensor], None]
Generators = torch.Generator | Sequence[torch.Generator]
LESS_MEMORY = "restore it in tiles (--tile 512, or smaller), or in --dtype bfloat16"


class Job(NamedTuple):
    """A file to restore.

    Attributes:
        name: what, with the run's seed, seeds its noise.
    """

    source: Path
    target: Path
    name: str


@dataclass
class RestoreSummary:
    """What became of each file; `failed` holds (input, reason)."""

    restored: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """0, or 1 when a file could not be restored."""
        return 1 if self.failed else 0

    def __str__(self) -> str:
        counts = f"{len(self.restored)} restored, {len(self.skipped)} skipped, {len(self.failed)} failed"
        return "\n".join([counts, *(f"  {reason}" for _, reason in self.failed)])


def seeded_generator(name: str, seed: int) -> torch.Generator:
    """A CPU generator that depends on `name` (an image id) and `seed` only, equal in every process."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@torch.no_grad()
def sample(
    model: BaseModel,
    lq: Tensor,
    sampler: SamplerSettings,
    generator: Generators,
    tiling: Tiling | None = None,
    device: torch.device | str | None = None,
    image_ids: Sequence[str] = (),
    on_estimate: OnEstimate | None = None,
) -> Tensor:
    """Restored images, float32 [B, 3, H, W] in [0, 1], of `lq` like it; H and W multiples of `model.size_multiple`.

    With `tiling` every network, cleaner, VAE and denoiser, only ever sees tiles, one after the other: what the model
    takes on `device` grows with the tile. A tile has a condition of its own. In every step the outputs of all tiles
    are blended before the whole latent takes the step, with noise that is drawn for the whole, so that neighbours
    can't drift apart; and networks are given the statistics that they take of whole pictures, such as group norms'
    means, of samples no larger than a tile (`restoration.statistics`). What grows with the picture lies on the device
    of `lq`: a few copies of the picture and of its latent, and the conditions of all tiles, which hold pixels and
    latents (tile / (tile - overlap))² times.

    Args:
        generator: one for the batch, or one an image: then an image's result doesn't depend on its company. The
            noise is drawn on the generator's own device, so CPU generators give the same noise on every device.
        tiling: None restores the picture whole.
        device: where `model` is; None where `lq` is.
        image_ids: one an image, for a model with embeddings of single pictures.
        on_estimate: called after each step with what the model takes the clean images for then, like the result,
            which is the last; each costs a decoding.

    Raises:
        ValueError: a size that is no multiple, not one generator an image, or too small a tile.
    """
    height, width = lq.shape[-2:]
    if height % model.size_multiple or width % model.size_multiple:
        raise ValueError(f"sample: {width}x{height} is no multiple of {model.size_multiple}; use restore(), which pads")
    if not isinstance(generator, torch.Generator) and len(generator) != len(lq):
        raise ValueError(f"sample: {len(generator)} generators for {len(lq)} images")
    place = lq.device if device is None else torch.device(device)
    pixels = Grid.of(height, width, tiling, model.size_multiple)
    conditions: list[Condition] = []  # of the tiles
    samples = pixels.samples(model.size_multiple)
    sampled: list[Condition] = []

    def of_whole(run: Callable[[Pieces, int], object], attention: bool = False) -> Statistics | None:
        """What networks say of the picture's samples in `run`; None where there is a single tile."""
        statistics = Statistics(attention)
        for i, pieces in enumerate(samples):
            with sampling(statistics, pieces):
                run(pieces, i)
        return statistics if samples else None

    def condition_of(images: Tensor, pieces: int = 1) -> Condition:
        ids = tuple(image_id for image_id in image_ids for _ in range(pieces))
        return model.condition(images.to(place), ids).map(lambda v: v.to(lq.device))

    def cleaned(tile: Tensor, _: int) -> Tensor:
        with given(statistics):
            conditions.append(condition_of(tile))
        return conditions[-1].clean

    statistics = of_whole(lambda p, _: sampled.append(condition_of(p.cut(lq), len(p.corners))), attention=True)
    clean = pixels.map(cleaned, lq)
    of_first = conditions[0].latent
    factor = conditions[0].clean.shape[-1] // of_first.shape[-1]
    latents = pixels.shrunk(factor)
    shape = torch.Size((*of_first.shape[:2], latents.height, latents.width))

    def in_tiles(f: Callable[[Tensor, Condition], Tensor], x: Tensor, attention: bool = False) -> Tensor:
        def there(part: Tensor, condition: Condition) -> Tensor:
            return f(part.to(place), condition.map(lambda v: v.to(place)))

        statistics = of_whole(lambda p, i: there(p.shrunk(factor).cut(x), sampled[i]), attention)

        def on_tile(tile: Tensor, i: int) -> Tensor:
            with given(statistics):
                return there(tile, conditions[i])

        return latents.map(on_tile, x)

    def finished(latent: Tensor) -> Tensor:
        return match_colour(in_tiles(model.decode, latent, attention=True), clean, sampler.colour_fix).clamp(0, 1)

    x_t = in_tiles(lambda noise, condition: model.start(condition, noise), _noise(shape, generator, lq.device))
    steps = model.schedule(sampler).steps
    for step in steps:
        output = in_tiles(partial(_denoise, model, step, sampler.guidance_scale), x_t)
        noisy = step.is_decision and step is not steps[-1]  # noise that nothing removes only explores
        noise = _noise(shape, generator, lq.device) if noisy else torch.zeros_like(x_t)
        taken = transition(step, output, x_t, noise=noise)
        x_t = taken.action
        if on_estimate is not None and step is not steps[-1]:
            on_estimate(step, finished(taken.x0))
    result = finished(x_t)
    if on_estimate is not None:
        on_estimate(steps[-1], result)
    return result


def restore(
    model: BaseModel,
    lq: Tensor,
    sampler: SamplerSettings,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    tiling: Tiling | None = None,
    image_ids: Sequence[str] = (),
    on_estimate: OnEstimate | None = None,
) -> Tensor:
    """One image of any size, float32 [3, H, W] in [0, 1]; the result is like it, on the CPU.

    The image is reflected at its right and bottom edge up to the model's multiple and the result cropped back.
    `model` must be on `device` already; with `tiling` only tiles go there (`sample`). `on_estimate` is given images
    like the result.
    """
    height, width = lq.shape[-2:]
    padded = pad_to_multiple(lq, model.size_multiple)[None]
    if tiling is None:
        padded = padded.to(device)

    def cropped(images: Tensor) -> Tensor:
        return crop_back(images[0], height, width).cpu()

    def on_padded(step: Step, images: Tensor) -> None:
        if on_estimate is not None:
            on_estimate(step, cropped(images))

    sink = None if on_estimate is None else on_padded
    return cropped(sample(model, padded, sampler, generator, tiling, device, image_ids, sink))


def restore_file(
    model: BaseModel,
    job: Job,
    sampler: SamplerSettings,
    seed: int = 0,
    device: torch.device | str = "cpu",
    tiling: Tiling | None = None,
    bits: int = 8,
) -> None:
    """Restore one file to a PNG of `bits` a channel. Alpha, where there is any, is taken over as it is.

    Raises:
        ImageError: the file can't be read or written, or the result is not finite (float16 overflows).
    """
    lq, alpha = read_with_alpha(job.source)
    if tiling is None:
        warn_of_whole(job.source, (lq.shape[-2], lq.shape[-1]), model, device)
    restored = restore(model, lq, sampler, seeded_generator(job.name, seed), device, tiling, (job.name,))
    if not torch.isfinite(restored).all():
        raise ImageError(f"{job.source}: the result is not finite; restore it with float32 or bfloat16")
    write_image(job.target, restored if alpha is None else torch.cat([restored, alpha]), bits)


def restore_folder(
    model: BaseModel,
    input: Path,
    output: Path,
    *,
    sampler: SamplerSettings,
    skip_existing: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
    tiling: Tiling | None = None,
    bits: int = 8,
    progress: Callable[[int, int, Path], None] | None = None,
) -> RestoreSummary:
    """Restore one file, or every image under a folder, to PNG files of the same relative name.

    A single file goes to `output` if that ends in .png, else into the folder `output`. Results appear whole
    (temporary name, then rename), so an interrupted run goes on with `skip_existing`. The noise of an image
    depends on its relative name and `seed` only. In a folder, a file that can't be restored, whatever the reason, is
    recorded in the summary and the rest goes on.

    Args:
        tiling: None restores each picture whole (`sample`).
        bits: 8 or 16 a channel of the results.
        progress: called with (done, total, file) once before the first file and after each.

    Raises:
        FileNotFoundError: `input` doesn't exist.
        ImageError: a single file that can't be restored, a folder without images, two inputs of one result name,
            results that would overwrite inputs, an `output` named like a picture that it can't be.
    """

    def restore_one(job: Job) -> None:
        restore_file(model, job, sampler, seed, device, tiling, bits)

    def one_by_one(jobs: Iterable[Job]) -> Iterator[tuple[Job, Exception | None]]:
        for job in jobs:
            yield job, tried(restore_one, job)

    return restore_jobs(one_by_one, input, output, skip_existing, progress)


def tried(restore_one: Callable[[Job], None], job: Job) -> Exception | None:
    """Restore one file; what that raises is a value: an ImageError where the file, its folder or memory is at fault.

    Another error is one of the code, and comes as it is.
    """
    try:
        restore_one(job)
    except ImageError as error:
        return error
    except Exception as error:
        free_memory(error)
        # Without the error itself, whose frames hold the picture's tensors.
        known = is_memory(error) or isinstance(error, EXPECTED)
        return ImageError(told(job.source, error, LESS_MEMORY)) if known else error
    return None


def restore_jobs(
    run: Callable[[list[Job]], Iterable[tuple[Job, Exception | None]]],
    input: Path,
    output: Path,
    skip_existing: bool = True,
    progress: Callable[[int, int, Path], None] | None = None,
) -> RestoreSummary:
    """As `restore_folder`; `run` restores the jobs and gives each, in any order, when it is done or has failed."""
    input, output = Path(input), Path(output)
    jobs = _plan(input, output)
    todo = [job for job in jobs if not (skip_existing and os.path.exists(job.target))]  # False for too long a name
    summary = RestoreSummary(skipped=[job.source for job in jobs if job not in todo])
    report = progress or (lambda done, total, file: None)
    report(len(jobs) - len(todo), len(jobs), (todo or jobs)[0].source)
    for done, (job, error) in enumerate(run(todo), len(jobs) - len(todo) + 1):
        if error is None:
            summary.restored.append(job.source)
        elif job.source == input:
            raise error
        else:
            summary.failed.append((job.source, told(job.source, error, LESS_MEMORY)))
        report(done, len(jobs), job.source)
    return summary


def _denoise(model: BaseModel, step: Step, guidance_scale: float, x_t: Tensor, condition: Condition) -> Tensor:
    return model.denoise(x_t, step.timestep, condition, guidance_scale)


def _noise(shape: torch.Size, generator: Generators, device: torch.device) -> Tensor:
    """Standard normal float32 of `shape`."""
    if isinstance(generator, torch.Generator):
        return to_device(torch.randn(shape, generator=generator, device=generator.device), device)
    drawn = [torch.randn(shape[1:], generator=g, device=g.device) for g in generator]
    return to_device(torch.stack(drawn), device)


def _plan(input: Path, output: Path) -> list[Job]:
    if input.is_file():
        target = output / f"{input.stem}.png" if _is_folder(output, single=True) else output
        jobs = [Job(input, target, normal(input.stem))]
    elif input.is_dir():
        _is_folder(output, single=False)
        if (result_folder := _real(output)) == _real(input):
            raise ImageError(f"{output}: results would lie among the inputs; choose another output folder")
        # Results of an earlier run may lie in a folder inside the input.
        sources = [p for p in list_images(input) if result_folder not in _real(p).parents]
        if not sources:
            raise ImageError(f"{input}: the folder holds no image")
        stems = [p.relative_to(input).with_suffix("") for p in sources]
        jobs = [
            Job(source, output / stem.parent / f"{stem.name}.png", image_name(source, input))
            for source, stem in zip(sources, stems, strict=True)
        ]
    else:
        raise FileNotFoundError(f"{input} does not exist; give an image file or a folder of images")
    taken: dict[Path, Path] = {}
    for source, target, _ in jobs:
        if _real(target) == _real(source):
            raise ImageError(f"{target}: the result would overwrite its input; choose another output")
        if target in taken:
            raise ImageError(f"{taken[target]} and {source} would both become {target}; rename one")
        taken[target] = source
    return jobs


def _real(path: Path) -> Path:
    """Without links; a link to itself, which `Path.resolve` refuses, stays."""
    return Path(os.path.realpath(path))


def _is_folder(output: Path, single: bool) -> bool:
    """Whether results go into a folder of that name; a `single` one may go to the file itself.

    Raises:
        ImageError: neither: results are PNG files, and no folder is made that is named like a picture.
    """
    suffix = output.suffix.lower()
    if os.path.isdir(output):
        return True
    if single and suffix == ".png":
        return False
    if suffix in IMAGE_SUFFIXES | UNREAD_SUFFIXES:
        if single:
            raise ImageError(
                f"{output}: results are written lossless, as PNG; give {output.with_suffix('.png')} or a folder"
            )
        raise ImageError(f"{output} is the name of one picture, and the input is a folder of them; give a folder")
    if os.path.exists(output):
        raise ImageError(f"{output} is a file; give a folder{', or a name that ends in .png' if single else ''}")
    return True
