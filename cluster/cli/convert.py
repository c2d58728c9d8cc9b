"""`restorl convert`: the files of a released base model become a model folder."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.errors import as_mistake, guarded, say


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
        with preferring(weights) as chosen, _said():  # type: ignore[arg-type]
            convert_files(kind, given, out, DTYPES[dtype])
        if weights != "auto" and not chosen.asked:
            say(f"--weights {weights}: no file holds weights and their average; they were taken as they are")
    print(f"model: {out}")


@contextmanager
def _said() -> Iterator[None]:
    """Inside, warnings to users come as one line each, without the place in the code."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            say(str(message)) if category is UserWarning else shown(message, category, *place)

        warnings.showwarning = show  # type: ignore[assignment]
        yield
