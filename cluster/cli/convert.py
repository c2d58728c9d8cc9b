"""`restorl convert`: the files of a released base model become a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.errors import as_mistake, guarded


@guarded
def convert(
    kind: Annotated[str, typer.Argument(help="diffbir, pasd, ...; docs/models.md lists them.")],
    out: Annotated[Path, typer.Argument(help="Folder of the model.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="What it is made of.", metavar="[KEY=VALUE]...")] = None,
    dtype: Annotated[str, typer.Option(help="Weights are stored as float32, bfloat16 or float16.")] = "float32",
    weights: Annotated[
        str, typer.Option(help="Of files with weights and their average: auto (as their authors do), plain or ema.")
    ] = "auto",
) -> None:
    """Turn the released files of a base model into a model folder, once.

    restorl convert diffbir models/diffbir base=v2-1_512-ema-pruned.ckpt checkpoint=v2.pth cleaner=deraining.pth

    restorl convert pasd models/pasd base=stable-diffusion-v1-5 checkpoint=checkpoint-100000 cleaner=LOLv1.pth

    Without arguments it says which ones a model takes.
    """
    from cluster.config.configure import parse_override
    from restoration.base_models import convert as convert_files
    from restoration.precision import DTYPES
    from restoration.state_dicts import WEIGHTS, preferring

    given: dict[str, Any] = {}
    with as_mistake(ValueError):
        if dtype not in DTYPES:
            raise ValueError(f"--dtype {dtype}: choose {', '.join(DTYPES)}")
        if weights not in WEIGHTS:
            raise ValueError(f"--weights {weights}: choose {', '.join(WEIGHTS)}")
        if out.exists():
            raise ValueError(f"{out} exists already; give a new folder")
        for text in arguments or []:
            (name, *inner), value = parse_override(text)
            if inner:
                given.setdefault(name, {})[".".join(inner)] = value
            else:
                given[name] = value
        with preferring(weights):  # type: ignore[arg-type]
            convert_files(kind, given, out, DTYPES[dtype])
    print(f"model: {out}")
