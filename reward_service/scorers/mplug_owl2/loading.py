"""Reading released weights: a whole network in shards, or a LoRA with what was trained beside it over a base network.

All names and shapes are compared before a value is read. Then each file is read in portions, of which every tensor
goes straight to its device and type: beside the network itself the host holds one portion.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from restoration.checkpoints import CheckpointError, check_shapes, empty, read_json, read_state, without_weights
from restoration.file_kinds import first
from reward_service.scorers.digests import summary_of
from reward_service.scorers.mplug_owl2.config import OwlConfig
from reward_service.scorers.mplug_owl2.network import Owl2

CONFIG = "config.json"
ADAPTER_CONFIG, BESIDE = "adapter_config.json", "non_lora_trainables.bin"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_PORTIONS = 16
"""A network's files are read in at least so many portions."""
_TABLES = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.position_ids$")
"""What some versions of the published program wrote beside the weights, and what follows from the sizes."""
_MATRIX = re.compile(r"(?:base_model\.model\.)?(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class Loaded:
    """A network on its device.

    Attributes:
        digest: of every weight as it lies in the files, whatever their format, the device and the type.
        parameters: how many numbers.
    """

    network: Owl2
    digest: str
    parameters: int


@dataclass(frozen=True)
class _File:
    """A file of weights, and which of its keys are taken under which of the network's names."""

    path: Path
    keys: Mapping[str, str]


@dataclass(frozen=True)
class _Update:
    """`scale` x B x A is added to a weight."""

    a: Tensor
    b: Tensor
    scale: float


def load_owl2(
    folder: Path, base: Path | None = None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Loaded:
    """The network of a released folder.

    Args:
        folder: with config.json and the weights: `model.safetensors` or `pytorch_model.bin`, in shards with their index
            or in one; or a LoRA, `adapter_model.*` with adapter_config.json and non_lora_trainables.bin.
        base: folder of the network that a LoRA was trained on; for a LoRA only.

    Raises:
        CheckpointError: a file that is absent or unreadable, keys that are missing, unexpected or of another shape;
            it names them.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; give the one that holds the downloaded {CONFIG} and weights")
    adapted = (folder / ADAPTER_CONFIG).is_file()
    if adapted and base is None:
        raise CheckpointError(
            f"{folder} holds a LoRA: give `base`, the folder of the network that it was trained on "
            "(mplug-owl2-llama2-7b)"
        )
    if base is not None and not adapted:
        raise CheckpointError(f"`base` is for a LoRA, and {folder} holds no {ADAPTER_CONFIG}; leave `base` out")
    config = read_config(folder / CONFIG)
    network = empty(lambda: Owl2(config)).eval().requires_grad_(False)
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    updates: dict[str, _Update] = {}
    if base is None:
        files, found = _files(folder)
        what = f"{folder} does not fit its {CONFIG}"
    else:
        beside, found = _beside(folder)
        of_base, shapes = _files(base, but=frozenset(found))
        files, found, what = [*of_base, beside], shapes | found, f"{folder} over {base} does not fit {CONFIG}"
        updates = _updates(folder, wanted)
    check_shapes(wanted, found, what)
    filling = _Filling(network, updates, torch.device(device), dtype)
    for file in files:
        filling.take(file, found)
    return Loaded(network, filling.digest(), sum(math.prod(shape) for shape in wanted.values()))


def read_config(file: Path) -> OwlConfig:
    """The sizes in a released config.json. Raises CheckpointError."""
    try:
        return OwlConfig.from_json(read_json(file))
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: {error}") from error


class _Filling:
    """Puts tensors into an empty network, and remembers what they were."""

    def __init__(self, network: Owl2, updates: Mapping[str, _Update], device: torch.device, dtype: torch.dtype) -> None:
        self.network, self.updates, self.device, self.dtype = network, updates, device, dtype
        self.parts: dict[str, bytes] = {}
        for name, update in updates.items():
            pair = [summary_of(t.to(device)) for t in (update.a, update.b)]
            self.parts[f"{name}+"] = b"".join([*pair, repr(update.scale).encode()])

    def take(self, file: _File, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Read the file's keys, a portion after the other: what is mapped is given back between them."""
        for keys in _portions(file.keys, shapes):
            state = read_state(file.path)
            ready = {own: self._ready(own, state[key]) for key, own in keys.items()}
            del state
            self.network.load_state_dict(ready, strict=False, assign=True)

    def digest(self) -> str:
        """Hex of 16 characters."""
        whole = hashlib.sha256()
        for name in sorted(self.parts):
            whole.update(name.encode() + b"\0" + self.parts[name])
        return whole.hexdigest()[:16]

    def _ready(self, name: str, value: Tensor) -> Tensor:
        value = value.to(self.device, copy=True)  # a tensor in the mapped file dies with the file
        self.parts[name] = summary_of(value)
        if (update := self.updates.get(name)) is not None:
            a, b = (t.to(self.device, torch.float32) for t in (update.a, update.b))
            value = torch.addmm(value.float(), b, a, alpha=update.scale)
        return value.to(self.dtype) if value.is_floating_point() else value


def _portions(keys: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, str]]:
    """The keys in runs of about a `_PORTIONS`-th of all values."""
    limit = sum(math.prod(shape) for shape in shapes.values()) / _PORTIONS
    portion: dict[str, str] = {}
    size = 0
    for key, own in keys.items():
        count = math.prod(shapes[own])
        if portion and size + count > limit:
            yield portion
            portion, size = {}, 0
        portion[key], size = own, size + count
    if portion:
        yield portion


def _files(folder: Path, but: frozenset[str] = frozenset()) -> tuple[list[_File], dict[str, tuple[int, ...]]]:
    """The files of a whole network, and the shapes in them; without the keys `but`."""
    files: list[_File] = []
    found: dict[str, tuple[int, ...]] = {}
    for path in _shards(folder):
        shapes = {k: s for k, s in _shapes(path).items() if k not in but and not _TABLES.search(k)}
        if twice := found.keys() & shapes.keys():
            raise CheckpointError(f"{folder}: {first(sorted(twice))} lie in two of its files; keep one download")
        files.append(_File(path, {key: key for key in shapes}))
        found |= shapes
    return files, found


def _shards(folder: Path) -> list[Path]:
    for name in _WHOLE:
        if (index := folder / f"{name}.index.json").is_file():
            named = read_json(index).get("weight_map")
            if not isinstance(named, dict) or not named or not all(isinstance(v, str) for v in named.values()):
                raise CheckpointError(f"{index} holds no weight_map of keys and files; download it again")
            shards = sorted(set(named.values()))
            if strange := [shard for shard in shards if Path(shard).name != shard]:
                raise CheckpointError(f"{index} names files outside its folder: {first(strange)}")
            if absent := [shard for shard in shards if not (folder / shard).is_file()]:
                raise CheckpointError(
                    f"{folder}: {len(absent)} of {len(shards)} shards are absent: {first(absent)}; download them"
                )
            return [folder / shard for shard in shards]
        if (folder / name).is_file():
            return [folder / name]
    inside = sorted(path.name for path in folder.iterdir())
    raise CheckpointError(
        f"{folder} holds no weights: {' or '.join(_WHOLE)}, or their index with its shards; it holds "
        f"{first(inside, 6) or 'nothing'}"
    )


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with without_weights(headers=True):
        return {key: tuple(value.shape) for key, value in read_state(file).items()}


def _beside(folder: Path) -> tuple[_File, dict[str, tuple[int, ...]]]:
    """What was trained in full beside a LoRA."""
    path = folder / BESIDE
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: a released LoRA has its trained vision model and abstractor in it")
    shapes = {k: s for k, s in _shapes(path).items() if not _TABLES.search(k)}
    keys = {key: _own(key) for key in shapes}
    if len(set(keys.values())) != len(keys):
        raise CheckpointError(f"{path} holds a weight twice, with and without a wrapper's prefix; download it again")
    return _File(path, keys), {keys[key]: shape for key, shape in shapes.items()}


def _own(key: str) -> str:
    """A key without what peft and the trainer put before it."""
    key = key.removeprefix("base_model.")
    return key.removeprefix("model.") if key.startswith(("model.model.", "model.lm_head.")) else key


def _updates(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, _Update]:
    """The updates of a LoRA by the weight that they are added to."""
    path = next((folder / name for name in _ADAPTERS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} holds no {' or '.join(_ADAPTERS)}; download it")
    scale = _scale(folder / ADAPTER_CONFIG)
    sides: dict[str, dict[str, Tensor]] = {}
    for key, value in read_state(path).items():
        if (match := _MATRIX.fullmatch(key)) is None or f"{match['layer']}.weight" not in wanted:
            raise CheckpointError(f"{path}: {first([key])} belongs to no layer of the network")
        sides.setdefault(f"{match['layer']}.weight", {})[match["side"]] = value.clone()
    updates = {}
    for name, pair in sides.items():
        if missing := {"A", "B"} - pair.keys():
            raise CheckpointError(f"{path}: {name.removesuffix('.weight')}.lora_{missing.pop()} is missing")
        a, b = pair["A"], pair["B"]
        if len(b.shape) != 2 or b.shape[1:] != a.shape[:1] or (b.shape[0], *a.shape[1:]) != wanted[name]:
            shapes = f"{tuple(b.shape)} x {tuple(a.shape)}"
            raise CheckpointError(f"{path}: the update {shapes} of {name} does not fit its shape {wanted[name]}")
        updates[name] = _Update(a, b, scale(len(a)))
    if not updates:
        raise CheckpointError(f"{path} holds no update; download it again")
    return updates


def _scale(file: Path) -> Callable[[int], float]:
    """What an update of a rank is multiplied by."""
    described: dict[str, Any] = read_json(file)
    plain = {
        "bias": "none", "fan_in_fan_out": False, "use_dora": False, "alpha_pattern": {}, "rank_pattern": {},
        "modules_to_save": None,
    }  # fmt: skip
    for name, usual in plain.items():
        if (found := described.get(name, usual)) not in (usual, None, []):
            raise CheckpointError(f"{file}: {name}={found!r} is not known here; {usual!r} is")
    alpha, rank = described.get("lora_alpha"), described.get("r")
    for name, value in (("lora_alpha", alpha), ("r", rank)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise CheckpointError(f"{file}: {name}={value!r}: must be a number above 0")

    def scale(found: int) -> float:
        if found != rank:
            raise CheckpointError(f"{file}: r={rank}, but an update has the rank {found}")
        return float(alpha / (math.sqrt(found) if described.get("use_rslora") else found))  # type: ignore[operator]

    return scale
