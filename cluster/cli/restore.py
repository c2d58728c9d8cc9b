"""`restorl restore`: images of any size, whole or in tiles, on one device or several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.errors import as_mistake, guarded, only_with, say
from cluster.cli.output import Counter

if TYPE_CHECKING:
    from restoration.base_models.interface import BaseModel, SamplerSettings
    from restoration.tiling import Tiling


@guarded
def restore(
    input: Annotated[Path, typer.Argument(help="An image, or a folder of images.")],
    output: Annotated[Path, typer.Argument(help="Where the results go, as PNG.")],
    model: Annotated[Path, typer.Option(help="Folder of a run or of a model.", metavar="RUN_OR_FOLDER")],
    checkpoint: Annotated[str, typer.Option(help="Of a run: latest, average, base, or an iteration.")] = "latest",
    embeddings: Annotated[
        Path | None, typer.Option(help="Folder of <image>.safetensors, what the model sees besides (docs/models.md).")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Restore again what exists.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the sampling noise.")] = 0,
    tile: Annotated[int, typer.Option(help="Side in pixels of what the networks see at once; 0 is all.", min=0)] = 0,
    tile_overlap: Annotated[
        int | None, typer.Option(help="With --tile: pixels that neighbouring tiles share; default 64.", min=0)
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, in place of the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, in place of the model's; 1 is none.")] = None,
    colour_fix: Annotated[str | None, typer.Option(help="none, adain or wavelet, in place of the model's.")] = None,
    dtype: Annotated[
        str, typer.Option(help="The networks compute in float32, bfloat16, float16, or auto.")
    ] = "float32",
    bits: Annotated[int, typer.Option(help="8 or 16 a channel of the results.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    devices: Annotated[int, typer.Option(help="Work on so many GPUs (or CPU processes) at once.", min=1)] = 1,
) -> None:
    """Restore an image or a folder of images of any size.

    restorl restore --model runs/demo rainy/ restored/

    restorl restore --model models/demo photo.jpg photo_restored.png

    restorl restore --model models/diffbir --tile 512 --dtype auto --devices 4 large/ restored/
    """
    from dataclasses import replace

    from cluster.models import load_policy
    from restoration.devices import device_of
    from restoration.precision import AUTO, DTYPES, resolve, set_precision, slow_here
    from restoration.restore import restore_folder
    from restoration.tiling import Grid

    given: dict[str, Any] = {"steps": steps, "guidance_scale": guidance, "colour_fix": colour_fix}
    with as_mistake(ValueError):
        if dtype not in (AUTO, *DTYPES) or bits not in (8, 16):
            raise ValueError(f"--dtype {dtype} --bits {bits}: choose float32, bfloat16, float16 or auto, and 8 or 16")
        tiling = tiling_of(tile, tile_overlap)
    with as_mistake(ValueError, RuntimeError):  # a device that torch can't ask
        place = device_of(device, elsewhere=devices > 1)
        compute = resolve(dtype, place)
        if (warning := slow_here(compute, place)) is not None:
            say(f"WARNING: --dtype {dtype}: {warning}; give auto, or float32")
    policy, sampler = load_policy(model, checkpoint, embeddings)
    with as_mistake(ValueError), Counter() as shown:
        sampler = replace(sampler, **{k: v for k, v in given.items() if v is not None})
        require(policy, sampler)
        Grid.of(policy.size_multiple, policy.size_multiple, tiling, policy.size_multiple)  # refuses too small a tile

        def progress(done: int, total: int, file: Path) -> None:
            shown(file.name, done, total)

        if devices > 1:
            from cluster.cli.restore_workers import RestoreSpec, restore_on_workers

            del policy
            each = embeddings.resolve() if embeddings is not None else None
            spec = RestoreSpec(model.resolve(), checkpoint, each, sampler, dtype, seed, place, tiling, bits)
            summary = restore_on_workers(spec, devices, input.resolve(), output.resolve(), not overwrite, progress)
        else:
            set_precision(policy, compute)
            summary = restore_folder(
                policy.to(place),
                input,
                output,
                sampler=sampler,
                skip_existing=not overwrite,
                seed=seed,
                device=place,
                tiling=tiling,
                bits=bits,
                progress=progress,
            )
    print(summary)
    raise typer.Exit(summary.exit_status)


def tiling_of(tile: int | None, overlap: int | None) -> Tiling | None:
    """Of `--tile` and `--tile-overlap`; None: whole pictures.

    Raises:
        UserMistake: an overlap without tiles.
        ValueError: sizes that don't go together.
    """
    from restoration.tiling import Tiling

    only_with("--tile SIDE", bool(tile), tile_overlap=overlap)
    if not tile:
        return None
    return Tiling(tile) if overlap is None else Tiling(tile, overlap)


def require(model: BaseModel, sampler: SamplerSettings) -> None:
    """Refuse at once what would fail on each picture.

    Raises:
        ValueError: a chain or a guidance that the model can't walk by, an embedding that nothing gives it.
    """
    from restoration.base_models.interface import NEGATIVE
    from restoration.base_models.latent import LatentModel

    model.schedule(sampler)
    if not isinstance(model, LatentModel) or model.per_image is not None:
        return
    if missing := [name for name in model.NEEDS if name not in model.embeddings]:
        raise ValueError(
            f"{model.name} looks at {', '.join(missing)}, which its folder doesn't hold; give --embeddings"
        )
    if sampler.guidance_scale != 1 and NEGATIVE + "text" not in model.embeddings:
        raise ValueError(
            f"guidance_scale {sampler.guidance_scale:g} needs a negative text embedding, and {model.name} stores none; "
            "use guidance_scale 1"
        )
