"""`restorl export`: a tuned model leaves its run, for RestoRL or for the program of its authors."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.cli.errors import UserMistake, as_mistake, guarded

if TYPE_CHECKING:
    import torch

FORMS = ("model", "released", "lora")


@guarded
def export(
    model: Annotated[Path, typer.Argument(help="Run, or folder of a model.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    form: Annotated[str, typer.Option("--as", help="model, released or lora.")] = "model",
    checkpoint: Annotated[str, typer.Option(help="Of a run: latest, average, base, or an iteration.")] = "latest",
    over: Annotated[
        Path | None, typer.Option(help="With --as released: the released file that also holds what wasn't trained.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="With --as model: store float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write a tuned model as files of its own.

    `model`: a folder that every command here takes in place of the run, LoRA merged, with the run's sampler.

    `released`: what was trained in the layout that the model's authors released, for their own program.

    `lora`: the run's LoRA as a peft adapter.

    restorl export runs/rl models/rl --checkpoint average

    restorl export runs/rl exported --as released --over stablesr_000117.ckpt
    """
    from restoration.precision import DTYPES

    if form not in FORMS:
        raise UserMistake(f"--as {form}: choose {', '.join(FORMS)}")
    if dtype not in DTYPES:
        raise UserMistake(f"--dtype {dtype}: choose {', '.join(DTYPES)}")
    if over is not None and form != "released":
        raise UserMistake(f"--over {over}: only with --as released")
    if dtype != "float32" and form != "model":
        raise UserMistake(f"--dtype {dtype}: only with --as model")
    if out.exists():
        raise UserMistake(f"{out} exists already; give a new folder")
    with as_mistake(ValueError):
        write(model, out, form, checkpoint, over, DTYPES[dtype])  # type: ignore[arg-type]
    for file in sorted(p for p in out.rglob("*") if p.is_file()):
        print(file)


def write(
    run: Path,
    out: Path,
    form: Literal["model", "released", "lora"],
    checkpoint: str,
    over: Path | None,
    dtype: torch.dtype,
) -> None:
    """As `export`.

    Raises:
        ConfigError, CheckpointError: as `load_policy`.
        AdapterError: "lora" of what was not trained by LoRA.
        ValueError: `over` is missing or not needed, or the model has no released layout.
    """
    from cluster.models import is_run, load_policy
    from restoration.adapters import merge, save_lora, trained_parameters
    from restoration.precision import trainable

    policy, sampler = load_policy(run, checkpoint)
    tuned = is_run(run) and checkpoint != "base"
    if form == "lora":
        if not tuned:
            raise ValueError(f"{run} with --checkpoint {checkpoint} has no LoRA; only a trained run has one")
        return save_lora(policy, out)
    trained = set(trainable(policy))  # by SFT, of which a run knows nothing
    if tuned:
        trained |= trained_parameters(policy).keys()
        merge(policy)
    if form == "released":
        if not hasattr(policy, "export"):
            raise ValueError(f"{policy.name} has no released layout to export to; use --as model")
        return policy.export(out, trained, over)
    policy.save(out, dtype)
    origin = {"run": run.resolve().name, "checkpoint": checkpoint} if is_run(run) else {"model": run.resolve().name}
    (out / "recipe.json").write_text(json.dumps({"exported": origin, "sampler": asdict(sampler)}, indent=2) + "\n")
