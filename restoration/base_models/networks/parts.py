"""The networks of a model folder and of what is exported from it, as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from restoration.base_models.networks.diffusers_folder import WEIGHTS_FILE
from restoration.checkpoints import CheckpointError, is_safetensors, read_raw, unwrap, without_left_out
from restoration.state_dicts import average_of


class Part(NamedTuple):
    """A network of a model folder.

    Attributes:
        config: its config.json.
        released: a key of the network -> its key in the file, None if it lies elsewhere.
    """

    network: nn.Module
    config: Mapping[str, Any]
    released: Callable[[str], str | None] = str

    def state(self) -> dict[str, Tensor]:
        """The tensors by their keys in the file."""
        return {key: v for k, v in self.network.state_dict().items() if (key := self.released(k)) is not None}

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write weights and config.json, floating point as `dtype`, making the folder."""
        save_state(self.state(), folder / WEIGHTS_FILE, dtype)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")


def touches(part: str, trained: Collection[str]) -> bool:
    """Whether any of the policy's parameters `trained` belongs to its network `part`."""
    return any(name.startswith(f"{part}.") for name in trained)


def config_file(network: Any) -> dict[str, Any]:
    """The config.json of a diffusers network."""
    loaded: dict[str, Any] = json.loads(network.to_json_string())
    return loaded


def save_state(state: Mapping[str, Tensor], file: Path, dtype: torch.dtype) -> None:
    """Write safetensors, floating point as `dtype`, making the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = {k: v.detach().to("cpu", dtype if v.is_floating_point() else v.dtype) for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in stored.items()}, file, metadata={"format": "pt"})


def cloned(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU that share no memory, as `torch.save` would otherwise keep all of it."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}


def save_pickled(content: Any, file: Path) -> None:
    """Write a file that `torch.load(file, weights_only=True)` reads, making the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, file)


def save_over(original: Path, state: Mapping[str, Tensor], folder: Path) -> None:
    """Write a copy of `original`, a released file, into `folder` with the tensors of `state` in the place of its own.

    Its name, its other content and each tensor's dtype stay; objects of other programs are left out. Where it has the
    average of a tensor (`model_ema.`), that becomes the same, so that programs which read averages see the new one.

    Raises:
        CheckpointError: it can't be read, or lacks one of them in this shape.
        ValueError: it lies in `folder` itself.
    """
    if original.parent.resolve() == folder.resolve():
        raise ValueError(f"{original} would be overwritten; export to another folder")
    content = read_raw(original)
    held = unwrap(content, original, averages=True)
    for key, value in state.items():
        if key not in held or held[key].shape != value.shape:
            found = tuple(held[key].shape) if key in held else "absent"
            raise CheckpointError(f"{original}: {key} is {found}, {tuple(value.shape)} in the model; is it another's?")
    new = cloned(state)
    new |= {average: value for key, value in new.items() if (average := average_of(key)) in held}
    held |= {key: value.to(held[key].dtype) for key, value in new.items()}
    if is_safetensors(original):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(held, folder / original.name, metadata={"format": "pt"})
    else:
        wrapped = isinstance(content, dict) and "state_dict" in content
        save_pickled(without_left_out(content) | {"state_dict": held} if wrapped else held, folder / original.name)
