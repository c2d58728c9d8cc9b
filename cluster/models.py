"""From what a user names, a run or a model folder, to a model that restores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config.configure import ConfigError, load_config

if TYPE_CHECKING:
    from cluster.config.recipe import RunConfig
    from restoration.base_models.interface import BaseModel, SamplerSettings

MODEL_FILE = "restorl_model.json"
CONFIG_FILE = "config.yaml"


def is_run(folder: Path) -> bool:
    """Whether `folder` is a run and not a model."""
    return (folder / CONFIG_FILE).is_file() and not (folder / MODEL_FILE).is_file()


def load_run_config(run: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """The resolved configuration of a run.

    Raises:
        ConfigError: no run, or a configuration this version doesn't read.
    """
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError.of(f"{run} is no run: there is no {CONFIG_FILE} in it; give the folder of a run")
    from cluster.config.earlier import translate
    from cluster.config.recipe import RunConfig

    return load_config(RunConfig, run / CONFIG_FILE, overrides, translate)


def load_policy(
    run_or_folder: Path, checkpoint: str = "latest", embeddings: Path | None = None
) -> tuple[BaseModel, SamplerSettings]:
    """A model, on the CPU and ready to restore, and how its chain is sampled.

    Args:
        run_or_folder: a run (its base model with the tensors it has trained) or the folder of a model, whose sampler
            is the one of the recipe it was trained with, or else its authors'.
        checkpoint: of a run: "latest", "average" (of the weights, with optimiser.ema), "base" (as before training) or
            the number of an iteration; a model has the first and the third only, which are itself.
        embeddings: folder with those of single pictures, see `restoration.base_models.load`; not those of a run's data.

    Raises:
        ConfigError: neither a run nor a model, or a checkpoint of a model.
        CheckpointError: the run has no such checkpoint, or files that are damaged or don't fit.
    """
    from restoration.base_models import load, sampler_of

    folder = Path(run_or_folder)
    if (folder / MODEL_FILE).is_file():
        if checkpoint not in ("latest", "base"):
            raise ConfigError.of(
                f"checkpoint {checkpoint}: {folder} is a model, not a run; it has no other, leave it out"
            )
        model = load(folder, embeddings)
        return model, sampler_of(folder, model)
    if not is_run(folder):
        raise ConfigError.of(
            f"{folder} is neither a run ({CONFIG_FILE}) nor a model ({MODEL_FILE}); give the folder of either"
        )
    config = load_run_config(folder)
    model = load(config.model, embeddings)
    if checkpoint != "base":
        averaged = checkpoint == "average"
        _load_trained(model, config, _find_checkpoint(folder, "latest" if averaged else checkpoint), averaged)
    model.policy.eval().requires_grad_(False)
    return model, config.sampler


def _find_checkpoint(run: Path, wanted: str) -> Path:
    from learner.checkpoint import CheckpointError, checkpoints, latest, step_of

    root = run / "checkpoints"
    if wanted == "latest":
        found = latest(root)
    else:
        found = next((p for p in checkpoints(root) if str(step_of(p)) == wanted), None)
    if found is None:
        there = ", ".join(str(step_of(p)) for p in checkpoints(root))
        advice = f"there are {there}" if there else "none is written yet"
        raise CheckpointError(f"{root}: no checkpoint {wanted!r}, {advice}; choose one, latest or base")
    return found


def _load_trained(model: BaseModel, config: RunConfig, checkpoint: Path, averaged: bool) -> None:
    import safetensors.torch

    from learner.checkpoint import CheckpointError, read, sizes
    from learner.learner import AVERAGE_FILE, STATE_FILES
    from restoration.adapters import load_trainable, make_trainable

    wanted = AVERAGE_FILE if averaged else STATE_FILES[0]
    if wanted not in sizes(checkpoint):
        advice = "train with optimiser.ema, or choose latest" if averaged else "choose another checkpoint"
        raise CheckpointError(f"{checkpoint} holds no {wanted}; {advice}")
    make_trainable(model, config.adapt)
    load_trainable(model, safetensors.torch.load(read(checkpoint, [wanted])[wanted]))
