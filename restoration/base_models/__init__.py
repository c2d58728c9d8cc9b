"""Diffusion restoration models behind one interface; `load` reads a model folder."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch

from restoration.base_models.facts import ModelFacts
from restoration.base_models.interface import BaseModel, Condition, SamplerSettings
from restoration.base_models.networks.embeddings import PerImage
from restoration.checkpoints import CheckpointError, read_json, without_weights
from restoration.precision import trainable, type_of_each

__all__ = [
    "KINDS",
    "BaseModel",
    "CheckpointError",
    "Condition",
    "ModelFacts",
    "SamplerSettings",
    "class_of",
    "convert",
    "describe",
    "load",
    "sampler_of",
]

KINDS = {
    "diffbir": "restoration.base_models.diffbir:DiffBIR",
    "controlnet": "restoration.base_models.pixel_control:PixelControl",
    "pasd": "restoration.base_models.pasd:PASD",
    "xpsr": "restoration.base_models.xpsr:XPSR",
    "seesr": "restoration.base_models.seesr:SeeSR",
    "faithdiff": "restoration.base_models.faithdiff:FaithDiff",
    "rap": "restoration.base_models.seesr:RAP",
    "stablesr": "restoration.base_models.stablesr:StableSR",
    "pisa": "restoration.base_models.pisa:PiSASR",
    "tsdsr": "restoration.base_models.tsdsr:TSDSR",
    "controlnet_sd3": "restoration.base_models.flow_sd3:SD3Control",
    "controlnet_flux": "restoration.base_models.flow_flux:FluxControl",
}
"""`kind` in restorl_model.json -> class with `load(folder)`; imported only when a model of that kind is loaded."""


def load(
    folder: Path | str,
    embeddings: Path | None = None,
    *,
    frozen_dtype: torch.dtype = torch.float32,
    mode: Literal["lora", "full"] = "full",
) -> BaseModel:
    """The model in `folder`, on the CPU, in evaluation mode.

    Weights are copied from the files straight into their type, tensor by tensor, so that a model of 16 bits never
    takes the room of one of 32.

    Args:
        embeddings: folder with embeddings of single pictures, see `embeddings.PerImage`.
        frozen_dtype: of all weights that training with `mode` leaves as they are; the others are float32, and so are
            the stored embeddings.
        mode: "full" trains the model's `trainable_names`, "lora" no weight that is in the folder.

    Raises:
        CheckpointError: no model folder, unknown kind, or files that don't fit; says what to do.
        ValueError: a type that is none of `precision.DTYPES`, or another mode.
    """
    if mode not in ("lora", "full"):
        raise ValueError(f"mode={mode!r}: choose lora or full")
    with without_weights() as waiting:
        model = _read(folder)
    kept = trainable(model).values() if mode == "full" else ()
    waiting.fill(type_of_each(model, frozen_dtype, kept))
    if embeddings is not None:
        model.per_image = PerImage(embeddings)
    return model


def describe(folder: Path | str) -> ModelFacts:
    """What can be known of the model in `folder` without its weights, of which only the headers are read.

    Raises:
        CheckpointError: as `load`, but for a file whose values are damaged.
    """
    with without_weights(headers=True):
        model = _read(folder)
        return replace(ModelFacts.of(model), sampler=sampler_of(folder, model))


def _read(folder: Path | str) -> Any:
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds restorl_model.json")
    kind = read_json(folder / "restorl_model.json").get("kind")
    if kind not in KINDS:
        raise CheckpointError(f"{folder / 'restorl_model.json'}: kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    return class_of(str(kind)).load(folder)


def sampler_of(folder: Path | str, model: BaseModel) -> SamplerSettings:
    """How `model`, loaded from `folder`, restores: as the recipe it was trained with says, or else its authors.

    Raises:
        CheckpointError: a recipe.json that can't be read.
    """
    recipe = Path(folder) / "recipe.json"
    if not recipe.is_file():
        return model.sampler
    given = read_json(recipe).get("sampler", {})
    try:
        return SamplerSettings(**given)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{recipe}: its sampler is none of this release: {error}; mend or delete it") from error


def class_of(kind: str) -> Any:
    """The class of a key of `KINDS`."""
    module, name = KINDS[kind].split(":")
    return getattr(importlib.import_module(module), name)


def convert(kind: str, arguments: Mapping[str, Any], out: Path, dtype: torch.dtype = torch.float32) -> BaseModel:
    """Turn released files into the model folder `out`.

    Args:
        kind: a key of `KINDS`.
        arguments: of its class's `from_released`, paths as text or Path; "settings" as a mapping.
        dtype: how the weights are stored.

    Raises:
        ValueError: an unknown kind, an argument missing or unknown, a setting that is invalid.
        CheckpointError: a file is absent, unreadable or not of the expected layout.
    """
    if kind not in KINDS:
        raise ValueError(f"model kind {kind!r} is unknown; choose {', '.join(KINDS)}")
    cls = class_of(kind)
    parameters = inspect.signature(cls.from_released).parameters
    needed = [n for n, p in parameters.items() if p.default is inspect.Parameter.empty]
    missing, unknown = [n for n in needed if n not in arguments], [n for n in arguments if n not in parameters]
    if missing or unknown:
        what = [f"missing {', '.join(missing)}"] * bool(missing) + [f"unknown {', '.join(unknown)}"] * bool(unknown)
        others = ", ".join(n for n in parameters if n not in needed)
        raise ValueError(f"{kind}: {'; '.join(what)}; it takes {', '.join(needed)}, and if wanted {others}")
    types = get_type_hints(cls.from_released)
    given: dict[str, Any] = {}
    for name, value in arguments.items():
        if name == "settings":
            try:
                value = cls.SETTINGS(**value)
            except TypeError as error:
                known = ", ".join(f.name for f in fields(cls.SETTINGS))
                raise ValueError(f"{kind}: settings={value}: known are {known}") from error
        elif types[name] in (Path, Path | None) and value is not None:
            value = Path(value)
        given[name] = value
    model: BaseModel = cls.from_released(**given)
    model.save(out, dtype)
    return model
