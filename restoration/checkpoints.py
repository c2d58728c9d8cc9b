"""Reading weights: strict, without unpickling code, with errors that say which key of which file is wrong."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from restoration.file_kinds import WEIGHTS_SUFFIXES, first, head_of, kind_of, not_fetched, told
from restoration.state_dicts import CheckpointError, unprefixed, unwrap
from restoration.torch_files import OtherFile, read_legacy, read_zip
from restoration.unpickling import LeftOut, Name, Unpickled

Network = TypeVar("Network", bound=nn.Module)
Shapes = Mapping[str, Sequence[int]]
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
_UNREADABLE = (
    OSError, RuntimeError, EOFError, ValueError, MemoryError, SafetensorError, struct.error, zlib.error,
    zipfile.BadZipFile, KeyError, OverflowError,
)  # fmt: skip


def children(shapes: Shapes, path: str) -> int:
    """How many modules lie directly below the module `path`, by its keys."""
    return len({k[len(path) + 1 :].split(".")[0] for k in shapes if k.startswith(path + ".")})


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises CheckpointError."""
    file = Path(file)
    try:
        head, size = head_of(file)
        if (what := not_fetched(head, size)) is not None:
            raise CheckpointError(f"{file} {what}; it should hold JSON")
        value = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing: is {file.parent} a model folder?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} must hold a JSON object, found {type(value).__name__}")
    return value


def read_raw(file: Path) -> Any:
    """All that a file of weights holds: tensors, numbers, texts, lists, mappings.

    Its content tells what it is, not its name: safetensors, or what torch.save wrote. No code in it is run; objects
    of other programs are left out, with a warning that names them. Tensors may lie in the mapped file.

    Raises:
        CheckpointError: absent, unreadable, or no such file; the message says what it is.
    """
    return _read(Path(file)).value


def read_state(file: Path, programs: bool = False) -> dict[str, Tensor]:
    """The tensors of such a file, without wrappers (`state_dict`, `module.`).

    Args:
        programs: a TorchScript program is a file of weights, too: its tensors are read, and nothing of it is run.

    Raises:
        CheckpointError: as `read_raw`, or it holds no tensors.
    """
    content, hint = _read(Path(file), programs), ""
    if content.tensors and content.left_out:
        hint = (
            f". Its tensors ({content.tensors}) are inside objects that are not opened ({first(content.left_out)}), "
            "such as a whole network: save its state_dict() as .safetensors with the program it came from"
        )
    return unwrap(content.value, file, hint)


def is_safetensors(file: Path) -> bool:
    """By its content. Raises OSError."""
    return kind_of(head_of(file)[0]) == "safetensors"


def check_fetched(folder: Path) -> None:
    """For folders that another library reads: raises CheckpointError where a file in it was not downloaded."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and (what := not_fetched(*head_of(file))) is not None:
            raise CheckpointError(f"{file} {what}")


def without_left_out(content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a file that have nothing left out anywhere in them, and can be written again."""
    return {key: value for key, value in content.items() if not _lacks(key) and not _lacks(value)}


@contextmanager
def about(file: Path | str) -> Iterator[None]:
    """A CheckpointError raised inside names the file."""
    try:
        yield
    except CheckpointError as error:
        if str(file) in str(error):
            raise
        raise CheckpointError(f"{file}: {error}") from error


def _read(file: Path, programs: bool = False) -> Unpickled:
    kind = _kind(file)
    meta = (waiting := _waiting.get()) is not None and waiting.headers
    try:
        if kind == "safetensors":
            return Unpickled(_shapes_in(file) if meta else load_file(file), (), 0)
        found = read_zip(file, meta, programs) if kind == "zip" else read_legacy(file, meta)
    except OtherFile as error:
        raise CheckpointError(f"{file} {error}") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{file} is cut off or damaged ({error}): download it again, whole") from error
    except _UNREADABLE as error:
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{file} is not a readable weights file: {text}. If it was downloaded, compare its size, download it again"
        ) from error
    if found.left_out:
        warnings.warn(
            f"{file}: objects of other programs are left out ({first(found.left_out, 6)}); none of their code was run",
            stacklevel=3,
        )
    return found


def _kind(file: Path) -> str:
    if file.is_dir():
        inside = sorted(f.name for f in file.iterdir() if f.suffix.lower() in WEIGHTS_SUFFIXES)
        remedy = f"give the file in it: {first(inside)}" if inside else "give a file of weights"
        raise CheckpointError(f"{file} is a folder where a file is needed; {remedy}")
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    try:
        head, size = head_of(file)
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {error}") from error
    if (kind := kind_of(head)) is not None:
        return kind
    what = told(head, size) or (
        f"is no weights file: it begins with the bytes {head[:8].hex(' ')}, neither safetensors nor of torch.save; "
        "give another, or download it again"
    )
    raise CheckpointError(f"{file} {what}")


def _lacks(value: Any) -> bool:
    seen, waiting = set(), [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, LeftOut | Name):
            return True
        if isinstance(item, Mapping | list | tuple | set | frozenset) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend([*item, *item.values()] if isinstance(item, Mapping) else item)
    return False


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
                # not empty_like: for a meta tensor it loads symbolic shapes, and sympy with them
                full[key] = torch.empty_strided(own[key].shape, own[key].stride(), dtype=target).copy_(value)
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


def _shapes_in(file: Path) -> dict[str, Tensor]:
    """The tensors of safetensors, on the meta device."""
    with safe_open(file, framework="pt") as content:  # type: ignore[no-untyped-call]
        found = {key: content.get_slice(key) for key in content.keys()}  # noqa: SIM118
        return {
            key: torch.empty(value.get_shape(), dtype=_DTYPES[value.get_dtype()], device="meta")
            for key, value in found.items()
        }


class _Uninitialised(TorchFunctionMode):
    """Nothing is drawn for tensors without values, which would take a third of the time of building a network."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.uniform_, Tensor.normal_) or getattr(func, "__module__", "") == nn.init.__name__:
            given = args[0] if args else kwargs["tensor"]
            if given.is_meta:
                return given
        return func(*args, **(kwargs or {}))


def empty(build: Callable[[], Network]) -> Network:
    """What `build` makes, without memory or initialisation for its weights; `load_strict` fills it."""
    with torch.device("meta"), _Uninitialised():
        return build()


def load_strict(
    network: nn.Module, state: Mapping[str, Tensor], file: Path | str, shown: Callable[[str], str] = str
) -> None:
    """Put `state` into `network` as float32; every key must be there, none too many, shapes equal.

    What a wrapper put before every key (`net_g.`, `unet.`) is taken off.

    Args:
        shown: the name in `file` of one of the network's keys, for error messages.

    Raises:
        CheckpointError: naming the first few keys that don't fit.
    """
    state = unprefixed(state, network.state_dict().__contains__, file, uniform=True)
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
        problems.append(f"{len(missing)} missing: {first(map(shown, missing))}")
    if unexpected := sorted(found.keys() - wanted.keys()):
        problems.append(f"{len(unexpected)} unexpected: {first(map(shown, unexpected))}")
    differing = [k for k in wanted if k in found and wanted[k] != found[k]]
    if wrong := [f"{shown(k)} {found[k]} instead of {wanted[k]}" for k in differing]:
        problems.append(f"{len(wrong)} of another shape: {first(wrong)}")
    if problems:
        advice = "Check that the file belongs to this model and its configuration"
        raise CheckpointError(f"{what}: {'; '.join(problems)}. {advice}")
