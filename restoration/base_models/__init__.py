"""Diffusion restoration models behind one interface; `load` reads a model folder."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import torch

from restoration.base_models.interface import BaseModel, Condition, SamplerSettings
from restoration.base_models.networks.embeddings import PerImage
from restoration.checkpoints import CheckpointError, read_json

__all__ = [
    "KINDS",
    "BaseModel",
    "CheckpointError",
    "Condition",
    "SamplerSettings",
    "class_of",
    "convert",
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


def load(folder: Path | str, embeddings: Path | None = None) -> BaseModel:
    """The model in `folder`, on the CPU, float32, in evaluation mode.

    Args:
        embeddings: folder with embeddings of single pictures, see `embeddings.PerImage`.

    Raises:
        CheckpointError: no model folder, unknown kind, or files that don't fit; says what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds restorl_model.json")
    kind = read_json(folder / "restorl_model.json").get("kind")
    if kind not in KINDS:
        raise CheckpointError(f"{folder / 'restorl_model.json'}: kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    model: BaseModel = class_of(str(kind)).load(folder)
    if embeddings is not None:
        model.per_image = PerImage(embeddings)
    return model


def sampler_of(folder: Path | str, model: BaseModel) -> SamplerSettings:
    """How `model`, loaded from `folder`, restores: as the recipe it was trained with says, or else its authors."""
    recipe = Path(folder) / "recipe.json"
    return SamplerSettings(**read_json(recipe).get("sampler", {})) if recipe.is_file() else model.sampler


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
