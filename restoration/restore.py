"""Run a base model's chain: on a batch, on one image of any size, on a file or folder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.colour import match_colour
from restoration.images import ImageError, crop_back, list_images, pad_to_multiple, read_image, write_image
from restoration.transition import transition

Generators = torch.Generator | Sequence[torch.Generator]


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
def sample(model: BaseModel, lq: Tensor, sampler: SamplerSettings, generator: Generators) -> Tensor:
    """Restored images, float32 [B, 3, H, W] in [0, 1], of `lq` like it; H and W multiples of `model.size_multiple`.

    Args:
        generator: one for the batch, or one an image: then an image's result doesn't depend on its company. The
            noise is drawn on the generator's own device, so CPU generators give the same noise on every device.

    Raises:
        ValueError: a size that is no multiple, or not one generator an image.
    """
    if any(side % model.size_multiple for side in lq.shape[-2:]):
        raise ValueError(
            f"sample: {lq.shape[-1]}x{lq.shape[-2]} is no multiple of {model.size_multiple}; use restore(), which pads"
        )
    if not isinstance(generator, torch.Generator) and len(generator) != len(lq):
        raise ValueError(f"sample: {len(generator)} generators for {len(lq)} images")
    condition = model.condition(lq)
    shape = condition.latent.shape
    x_t = model.start(condition, _noise(shape, generator, lq.device))
    steps = model.schedule(sampler).steps
    for step in steps:
        output = model.denoise(x_t, step.timestep, condition, sampler.guidance_scale)
        noisy = step.is_decision and step is not steps[-1]  # noise that nothing removes only explores
        noise = _noise(shape, generator, lq.device) if noisy else torch.zeros_like(x_t)
        x_t = transition(step, output, x_t, noise=noise).action
    return match_colour(model.decode(x_t, condition).float(), condition.clean, sampler.colour_fix).clamp(0, 1)


def restore(
    model: BaseModel,
    lq: Tensor,
    sampler: SamplerSettings,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One image of any size, float32 [3, H, W] in [0, 1]; the result is like it, on the CPU.

    The image is reflected at its right and bottom edge up to the model's multiple and the result cropped back.
    `model` must be on `device` already.
    """
    height, width = lq.shape[-2:]
    padded = pad_to_multiple(lq, model.size_multiple).to(device)
    return crop_back(sample(model, padded[None], sampler, generator)[0], height, width).cpu()


def restore_folder(
    model: BaseModel,
    input: Path,
    output: Path,
    *,
    sampler: SamplerSettings,
    skip_existing: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, Path], None] | None = None,
) -> RestoreSummary:
    """Restore one file, or every image under a folder, to 8-bit PNG files of the same relative name.

    A single file goes to `output` if that ends in .png, else into the folder `output`. Results appear whole
    (temporary name, then rename), so an interrupted run goes on with `skip_existing`. The noise of an image
    depends on its relative name and `seed` only. In a folder, a file that can't be read or written is recorded
    in the summary and the rest goes on.

    Args:
        progress: called with (done, total, file) before each file and once at the end with the last file.

    Raises:
        FileNotFoundError: `input` doesn't exist.
        ImageError: a single file that can't be read, a folder without images, two inputs of one result name, or
            results that would overwrite inputs.
    """
    input, output = Path(input), Path(output)
    jobs = _plan(input, output)
    summary = RestoreSummary()
    for done, (source, target, name) in enumerate(jobs):
        if progress is not None:
            progress(done, len(jobs), source)
        if skip_existing and target.exists():
            summary.skipped.append(source)
            continue
        try:
            lq = read_image(source)
            write_image(target, restore(model, lq, sampler, seeded_generator(name, seed), device))
        except ImageError as error:
            if source == input:
                raise
            summary.failed.append((source, str(error)))
        else:
            summary.restored.append(source)
    if progress is not None:
        progress(len(jobs), len(jobs), jobs[-1][0])
    return summary


def _noise(shape: torch.Size, generator: Generators, device: torch.device) -> Tensor:
    """Standard normal float32 of `shape`."""
    if isinstance(generator, torch.Generator):
        return torch.randn(shape, generator=generator, device=generator.device).to(device)
    return torch.stack([torch.randn(shape[1:], generator=g, device=g.device).to(device) for g in generator])


def _plan(input: Path, output: Path) -> list[tuple[Path, Path, str]]:
    """(source, target, name that seeds it) of each file."""
    if input.is_file():
        target = output if output.suffix.lower() == ".png" else output / f"{input.stem}.png"
        jobs = [(input, target, input.stem)]
    elif input.is_dir():
        if output.resolve() == input.resolve():
            raise ImageError(f"{output}: results would lie among the inputs; choose another output folder")
        # Results of an earlier run may lie in a folder inside the input.
        sources = [p for p in list_images(input) if output.resolve() not in p.resolve().parents]
        if not sources:
            raise ImageError(f"{input}: the folder holds no image")
        stems = [p.relative_to(input).with_suffix("") for p in sources]
        jobs = [
            (source, output / stem.parent / f"{stem.name}.png", stem.as_posix())
            for source, stem in zip(sources, stems, strict=True)
        ]
    else:
        raise FileNotFoundError(f"{input} does not exist; give an image file or a folder of images")
    taken: dict[Path, Path] = {}
    for source, target, _ in jobs:
        if target.resolve() == source.resolve():
            raise ImageError(f"{target}: the result would overwrite its input; choose another output")
        if target in taken:
            raise ImageError(f"{taken[target]} and {source} would both become {target}; rename one")
        taken[target] = source
    return jobs
