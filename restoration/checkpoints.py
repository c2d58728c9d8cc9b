"""Reading weights: strict, without unpickling code, with errors that say which key of which file is wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_CONTAINERS = ("state_dict", "params_ema", "params", "model", "module")


class CheckpointError(Exception):
    """A weights file that is absent, unreadable or does not fit; the message names file, keys and remedy."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    try:
        value = json.loads(Path(file).read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: is {Path(file).parent} a model folder?") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, found {type(value).__name__}")
    return value


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .pth, .pt, .ckpt or .bin file, without wrappers (`state_dict`, `module.`).

    Raises:
        CheckpointError: absent, unreadable, needs unpickling of code, or holds no tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        raw = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors and is not unpickled, since that could run code; save its state dict as "
            f".safetensors with the library it came from ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file} is not a readable weights file: {str(error).splitlines()[0]}") from error
    return unwrap(raw, file)


def unwrap(raw: Any, file: Path) -> dict[str, Tensor]:
    """The state dict inside the containers that trainers put around it."""
    while isinstance(raw, Mapping):
        inner = next((raw[c] for c in _CONTAINERS if isinstance(raw.get(c), Mapping)), None)
        if inner is None:
            break
        raw = inner
    state = {k: v for k, v in raw.items() if isinstance(v, Tensor)} if isinstance(raw, Mapping) else {}
    if not state:
        raise CheckpointError(f"{file} holds no tensors under names; expected a state dict")
    while all(k.startswith("module.") for k in state):
        state = {k.removeprefix("module."): v for k, v in state.items()}
    return state


def load_strict(network: nn.Module, state: Mapping[str, Tensor], file: Path | str) -> None:
    """Copy `state` into `network`; every key must be there, none too many, shapes equal.

    Raises:
        CheckpointError: naming the first few keys that don't fit.
    """
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    check_keys(wanted, {k: tuple(v.shape) for k, v in state.items()}, file, type(network).__name__)
    network.load_state_dict(dict(state), strict=True)


def check_keys(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], file: Path | str, what: str
) -> None:
    """Raises CheckpointError unless both have the same keys with the same shapes."""
    problems = []
    if missing := sorted(wanted.keys() - found.keys()):
        problems.append(f"{len(missing)} missing: {_few(missing)}")
    if unexpected := sorted(found.keys() - wanted.keys()):
        problems.append(f"{len(unexpected)} unexpected: {_few(unexpected)}")
    if wrong := [f"{k} {found[k]} instead of {wanted[k]}" for k in wanted if k in found and wanted[k] != found[k]]:
        problems.append(f"{len(wrong)} of another shape: {_few(wrong)}")
    if problems:
        raise CheckpointError(
            f"{file} does not fit {what}: {'; '.join(problems)}. Check that the file belongs to this model and its "
            "configuration"
        )


def _few(names: Collection[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
