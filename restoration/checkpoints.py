"""Reading weights: strict, without unpickling code, with errors that say which key of which file is wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)
Shapes = Mapping[str, Sequence[int]]
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CONTAINERS = ("state_dict", "params_ema", "params", "model", "module")


def children(shapes: Shapes, path: str) -> int:
    """How many modules lie directly below the module `path`, by its keys."""
    return len({k[len(path) + 1 :].split(".")[0] for k in shapes if k.startswith(path + ".")})


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


def read_raw(file: Path) -> Any:
    """All that a .safetensors, .pth, .pt, .pkl, .ckpt or .bin file holds: tensors, numbers, texts, lists, mappings.

    Raises:
        CheckpointError: absent, unreadable, or needs unpickling of code.
    """
    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    try:
        if (waiting := _waiting.get()) is not None and waiting.headers:
            return _shapes_in(file)
        if file.suffix == ".safetensors":
            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds more than tensors and is not unpickled, since that could run code; save its state dict as "
            f".safetensors with the library it came from ({str(error).splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, EOFError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file} is not a readable weights file: {str(error).splitlines()[0]}") from error


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of such a file, without wrappers (`state_dict`, `module.`).

    Raises:
        CheckpointError: as `read_raw`, or it holds no tensors.
    """
    return unwrap(read_raw(file), file)


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


class Waiting:
    """Networks that were checked against their files and get their weights later: what `without_weights` gives.

    Attributes:
        headers: files are not read beyond what tells names, shapes and types.
    """

    def __init__(self, headers: bool = False) -> None:
        self.headers = headers
        self._networks: list[tuple[nn.Module, dict[str, Tensor]]] = []

    def add(self, network: nn.Module, state: dict[str, Tensor]) -> None:
        self._networks.append((network, state))

    def fill(self, dtype: Callable[[Tensor], torch.dtype]) -> None:
        """Copy every tensor from its file, floating point as `dtype` says of the network's own; one at a time.

        The memory layout and whether it wants a gradient stay as they are in the network. No other copy is made.
        """
        for network, state in self._networks:
            own = network.state_dict(keep_vars=True)
            full = {}
            for key, value in state.items():
                target = dtype(own[key]) if value.is_floating_point() else value.dtype
                full[key] = torch.empty_like(own[key], dtype=target, device="cpu", requires_grad=False).copy_(value)
            network.load_state_dict(full, strict=False, assign=True)  # `load_strict` has compared the keys
        self._networks.clear()


_waiting: ContextVar[Waiting | None] = ContextVar("networks that wait for their weights", default=None)


@contextmanager
def without_weights(headers: bool = False) -> Iterator[Waiting]:
    """Inside, in this thread, networks from `empty` that are loaded stay empty until `fill`.

    Args:
        headers: tensors that are read from files have no values, either; `fill` is then impossible.
    """
    token = _waiting.set(waiting := Waiting(headers))
    try:
        yield waiting
    finally:
        _waiting.reset(token)


def _shapes_in(file: Path) -> Any:
    """What `read_raw` gives, tensors on the meta device."""
    if file.suffix != ".safetensors":
        return torch.load(file, map_location="meta", weights_only=True)
    with safe_open(file, framework="pt") as content:  # type: ignore[no-untyped-call]
        found = {key: content.get_slice(key) for key in content.keys()}  # noqa: SIM118
        return {
            key: torch.empty(value.get_shape(), dtype=_DTYPES[value.get_dtype()], device="meta")
            for key, value in found.items()
        }


def empty(build: Callable[[], Network]) -> Network:
    """What `build` makes, without memory or initialisation for its weights; `load_strict` fills it."""
    with torch.device("meta"):
        return build()


def load_strict(
    network: nn.Module, state: Mapping[str, Tensor], file: Path | str, shown: Callable[[str], str] = str
) -> None:
    """Put `state` into `network` as float32; every key must be there, none too many, shapes equal.

    Args:
        shown: the name in `file` of one of the network's keys, for error messages.

    Raises:
        CheckpointError: naming the first few keys that don't fit.
    """
    check_fit(network, {k: tuple(v.shape) for k, v in state.items()}, file, shown)
    put(network, state, strict=True)


def put(network: nn.Module, state: Mapping[str, Tensor], strict: bool) -> None:
    """Put `state`, whose keys and shapes are known to fit, into `network` as float32, or let it wait.

    Args:
        strict: every key of the network is there.
    """
    if (waiting := _waiting.get()) is not None and any(v.is_meta for v in network.state_dict().values()):
        waiting.add(network, dict(state))
        return
    # copied: a tensor that still lies in the mapped file dies with the file
    full = {k: v.to(torch.float32 if v.is_floating_point() else v.dtype, copy=True) for k, v in state.items()}
    network.load_state_dict(full, strict=strict, assign=any(p.is_meta for p in network.parameters()))


def check_fit(
    network: nn.Module, found: Mapping[str, tuple[int, ...]], file: Path | str, shown: Callable[[str], str] = str
) -> None:
    """Raises CheckpointError unless `found` {key: shape} has exactly the network's keys and shapes."""
    wanted = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    check_shapes(wanted, found, f"{file} does not fit {type(network).__name__}", shown)


def check_shapes(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    what: str,
    shown: Callable[[str], str] = str,
) -> None:
    """Raises CheckpointError, beginning with `what`, unless both {key: shape} are equal."""
    problems = []
    if missing := sorted(wanted.keys() - found.keys()):
        problems.append(f"{len(missing)} missing: {_few(map(shown, missing))}")
    if unexpected := sorted(found.keys() - wanted.keys()):
        problems.append(f"{len(unexpected)} unexpected: {_few(map(shown, unexpected))}")
    differing = [k for k in wanted if k in found and wanted[k] != found[k]]
    if wrong := [f"{shown(k)} {found[k]} instead of {wanted[k]}" for k in differing]:
        problems.append(f"{len(wrong)} of another shape: {_few(wrong)}")
    if problems:
        advice = "Check that the file belongs to this model and its configuration"
        raise CheckpointError(f"{what}: {'; '.join(problems)}. {advice}")


def _few(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
