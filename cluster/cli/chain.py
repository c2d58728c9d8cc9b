"""`restorl chain`: a denoising chain as an animation or a strip, with the score of each step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.errors import UserMistake, as_mistake, guarded
from cluster.cli.output import Counter
from cluster.cli.restore import require, tiling_of
from cluster.cli.scorer_text import named_scorer

if TYPE_CHECKING:
    from cluster.report.chains import Picture

DEFAULT_SCORER = "lite0_levels"


@guarded
def chain(
    model: Annotated[Path, typer.Argument(help="Folder of a run or of a model.", metavar="RUN_OR_FOLDER")],
    input: Annotated[
        list[Path] | None, typer.Argument(help="Degraded pictures; of a run by default some held-out ones.")
    ] = None,
    out: Annotated[
        list[Path] | None, typer.Option(help="FILE.webp or .gif: an animation; .png or .jpg: a strip. May be repeated.")
    ] = None,
    gt: Annotated[
        Path | None, typer.Option(help="Original of the one INPUT, or a folder of originals of the same names.")
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help=f"As of `restorl score`; default: the run's reward, of a model {DEFAULT_SCORER}.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Of a run: latest, average, base, or an iteration.")] = "latest",
    embeddings: Annotated[
        Path | None, typer.Option(help="Folder of <image>.safetensors, what the model sees besides (docs/models.md).")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Held-out pictures, without INPUT; default 3.", min=1)] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the sampling noise; default 0, of held-out pictures evaluation.seed.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, in place of the model's.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, in place of the model's; 1 is none.")] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side in pixels of what the networks see at once; 0 is all, the default; of held-out pictures "
            "evaluation.tile.",
            min=0,
        ),
    ] = None,
    tile_overlap: Annotated[
        int | None, typer.Option(help="With --tile: pixels that neighbouring tiles share; default 64.", min=0)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Show how a picture becomes clean: the input, then the model's estimate after each step, with its score.

    Of a run the base model stands above the tuned one. With originals, PSNR stands beside the score, of a run by its
    evaluations' protocol; its held-out pictures are restored as there.

    restorl chain runs/demo --out chain.webp --out chain.png

    restorl chain models/demo rainy.png --gt clean.png --steps 8 --out chain.gif
    """
    from cluster.models import is_run, load_run_config
    from cluster.report.chain_picture import ANIMATED, STILL, save_chains
    from cluster.report.chains import PICTURES, as_evaluated, chains_of, heldout_pictures, score_of
    from restoration.devices import device_of

    if not out:
        raise UserMistake("--out FILE: where to? FILE.webp or .gif for an animation, FILE.png or .jpg for a strip")
    if wrong := [path for path in out if path.suffix.lower() not in ANIMATED + STILL]:
        raise UserMistake(f"--out {wrong[0]}: choose a name that ends in {', '.join(ANIMATED + STILL)}")
    run = load_run_config(model) if is_run(model) else None
    if gt is not None and not input:
        raise UserMistake("--gt: held-out pictures have theirs; give INPUT, or leave it out")
    if not input and run is None:
        raise UserMistake("which picture? give INPUT: only a run has held-out pictures of its own")
    if input and count is not None:
        raise UserMistake(f"--count {count}: is of held-out pictures; leave it out, or INPUT")
    own = run if scorer is None else None
    score = score_of(own) if own is not None else named_scorer(scorer or DEFAULT_SCORER)[2].score
    with as_mistake(ValueError, RuntimeError):
        place = device_of(device)
        tiling = tiling_of(tile, tile_overlap)
    ways = as_evaluated(run) if run is not None else {}
    if input:
        pictures, ways = _given(input, gt), {name: way for name, way in ways.items() if name == "protocol"}
    else:
        pictures = heldout_pictures(run, count or PICTURES) if run is not None else []
    ways |= {"seed": seed} if seed is not None else {}
    ways |= {"tiling": tiling} if tile is not None else {}
    ways |= {"embeddings": embeddings} if embeddings is not None else {}
    changes: dict[str, Any] = {"steps": steps, "guidance_scale": guidance}
    with as_mistake(ValueError), Counter() as shown:
        found = chains_of(
            model,
            pictures,
            score,
            checkpoint=checkpoint,
            changes={name: value for name, value in changes.items() if value is not None},
            device=str(place),
            check=require,
            progress=shown,
            **ways,
        )
        for path in out:
            print(save_chains(path, found))


def _given(files: list[Path], gt: Path | None) -> list[Picture]:
    """The named pictures with their originals.

    Raises:
        UserMistake: an original that isn't there, or which one it is can't be told.
        ImageError: a file that can't be read.
    """
    from cluster.report.chains import Picture
    from restoration.image_files import list_images, normal
    from restoration.images import read_image

    originals: dict[str, list[Path]] = {}
    if gt is not None and gt.is_dir():
        for path in list_images(gt):
            originals.setdefault(normal(path.stem), []).append(path)
        for file in files:
            named = originals.get(normal(file.stem), [])
            if len(named) != 1:
                raise UserMistake(f"--gt {gt}: {len(named) or 'no'} originals named {file.stem}; there must be one")
    elif gt is not None:
        if len(files) > 1:
            raise UserMistake(f"--gt {gt} is one original for {len(files)} pictures; give a folder of originals")
        originals[normal(files[0].stem)] = [gt]
    pictures = []
    for file in files:
        name = normal(file.stem)
        original = read_image(originals[name][0]) if name in originals else None
        pictures.append(Picture(name, read_image(file), original))
    return pictures
