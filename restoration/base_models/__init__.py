"""Diffusion restoration models behind one interface; `load` reads a model folder."""

from __future__ import annotations

import importlib
from pathlib import Path

from restoration.base_models.interface import BaseModel, Condition, SamplerSettings
from restoration.checkpoints import CheckpointError, read_json

__all__ = ["KINDS", "BaseModel", "CheckpointError", "Condition", "SamplerSettings", "load"]

KINDS = {
    "diffbir": "restoration.base_models.diffbir:DiffBIR",
    "controlnet": "restoration.base_models.pixel_control:PixelControl",
    "pasd": "restoration.base_models.pasd:PASD",
    "xpsr": "restoration.base_models.xpsr:XPSR",
    "seesr": "restoration.base_models.seesr:SeeSR",
    "rap": "restoration.base_models.seesr:RAP",
    "stablesr": "restoration.base_models.stablesr:StableSR",
}
"""`kind` in restorl_model.json -> class with `load(folder)`; imported only when a model of that kind is loaded."""


def load(folder: Path | str) -> BaseModel:
    """The model in `folder`, on the CPU, float32, in evaluation mode.

    Raises:
        CheckpointError: no model folder, unknown kind, or files that don't fit; says what to do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder; give the folder that holds restorl_model.json")
    kind = read_json(folder / "restorl_model.json").get("kind")
    if kind not in KINDS:
        raise CheckpointError(f"{folder / 'restorl_model.json'}: kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    module, name = KINDS[kind].split(":")
    model: BaseModel = getattr(importlib.import_module(module), name).load(folder)
    return model
