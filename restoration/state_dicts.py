"""The weights inside what trainers put around them: containers, prefixes of wrappers, averages beside the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from restoration.file_kinds import first

Weights = Literal["auto", "plain", "ema"]
WEIGHTS: tuple[Weights, ...] = ("auto", "plain", "ema")

# Where a file has several of them, "auto" takes the first: BasicSR's authors read params_ema before params, all others'
# programs read the plain weights unless told otherwise.
_CONTAINERS = (
    "state_dict", "params_ema", "params", "model", "module", "model_state_dict", "net", "network", "weights", "net_g",
    "generator", "unet", "g", "netG", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema", "net_g_ema",
    "g_ema",
)  # fmt: skip
_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch puts between a module and its own name."""
_WORDS = {
    *(c for c in _CONTAINERS if c not in ("state_dict", "weights")), "control_model", "controlnet",
    "transformer", "online_model", "first_stage_model", "vae", "diffusion_model", "base_model", "model_g", "student",
}  # fmt: skip
_BOOKKEEPING = {"n_averaged", "initted", "step", "decay", "num_updates"}
"""Numbers that averages keep beside the weights."""
_AVERAGE = "model_ema."
"""Latent Diffusion's average: the dots of its names are left out."""

_preferred: ContextVar[Preferred | None] = ContextVar("which weights are taken of files with several", default=None)


class CheckpointError(Exception):
    """A weights file that is absent, unreadable or does not fit; the message names file, keys and remedy."""


@dataclass
class Preferred:
    """Which weights are taken of files with several.

    Attributes:
        weights: "auto" is what the authors of the file's kind read.
        asked: how often there was a choice.
    """

    weights: Weights
    asked: int = 0


@contextmanager
def preferring(weights: Weights) -> Iterator[Preferred]:
    """Inside, in this thread, of files with plain weights and their average (EMA) this one is taken."""
    token = _preferred.set(preferred := Preferred(weights))
    try:
        yield preferred
    finally:
        _preferred.reset(token)


def unwrap(raw: Any, file: Path | str, hint: str = "", averages: bool = False) -> dict[str, Tensor]:
    """The state dict inside the containers that trainers put around it, without the prefixes of torch's own wrappers.

    Args:
        hint: what else the file holds, for the message.
        averages: Latent Diffusion's average stays beside the weights, under its own names.

    Raises:
        CheckpointError: no tensors under names, or two that have the same name without the prefixes.
    """
    for _ in range(8):  # a container may be in itself
        inner = [c for c in _CONTAINERS if _holds_tensors(raw.get(c))] if _is_map(raw) else []
        if not inner:
            break
        raw = raw[_chosen(inner, file)]
    state = {k: v for k, v in raw.items() if isinstance(k, str) and isinstance(v, Tensor)} if _is_map(raw) else {}
    if not state:
        raise CheckpointError(f"{file} holds no tensors under names; expected a state dict{hint}")
    state = _without_wrappers(state, file)
    return state if averages else _flat_average(state, file)


def average_of(key: str) -> str:
    """The name of Latent Diffusion's average of a weight."""
    return _AVERAGE + key.removeprefix("model.").replace(".", "")


def within(state: Mapping[str, Tensor], landmarks: Collection[str], file: Path | str, what: str) -> dict[str, Tensor]:
    """The part of a state dict with a network's keys, without what wrappers put before them.

    Args:
        landmarks: keys that each such file has, and other networks in it don't.
        what: the network, for messages.

    Raises:
        CheckpointError: none of them is there, with or without a wrapper's prefix; it names the file's first keys.
    """
    found = unprefixed(state, landmarks.__contains__, file)
    if not any(key in found for key in landmarks):
        raise CheckpointError(
            f"{file} does not fit {what}: {first(landmarks)} is missing, the file's first keys are {first(state)}. "
            "Check that the file belongs to this model; what wrappers put before keys (module., control_model., net_g.)"
            " is taken off"
        )
    return found


def unprefixed(
    state: Mapping[str, Tensor], fits: Callable[[str], bool], file: Path | str, uniform: bool = False
) -> dict[str, Tensor]:
    """The part of a state dict below a wrapper's prefix; all of it where keys fit as they are, or none does.

    Args:
        fits: whether a key without prefix is the network's.
        uniform: only a prefix of every key is taken off. Else keys without it are left out, with a warning.
    """
    known = sorted(_prefixes(state), key=lambda p: (_is_average(p), len(p), p))
    counts = {p: sum(k.startswith(p) and fits(k[len(p) :]) for k in state) for p in known}
    best = max(counts.values())
    counted = [k for k in state if k not in _BOOKKEEPING]
    prefixes = [p for p in known if counts[p] == best and not (uniform and any(not k.startswith(p) for k in counted))]
    if counts[""] or not best or not prefixes:
        return dict(state)
    prefix = _chosen(prefixes, file)
    below = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if others := [k for k in counted if not k.startswith(tuple(prefixes))]:
        warnings.warn(
            f"{file}: of {len(state)} keys the {len(below)} below {prefix} are taken, the others are left out "
            f"({first(others)})",
            stacklevel=2,
        )
    return below


def _holds_tensors(value: Any, seen: set[int] | None = None) -> bool:
    """Whether it is a state dict, or has one in its containers, which may hold themselves."""
    seen = set() if seen is None else seen
    if not _is_map(value) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(isinstance(v, Tensor) for v in value.values()) or any(
        _holds_tensors(value.get(c), seen) for c in _CONTAINERS
    )


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_average(name: str) -> bool:
    return "ema" in name.rstrip(".").replace(".", "_").split("_")


def _chosen(names: list[str], file: Path | str) -> str:
    """Which container or prefix is taken of several, with a warning where both weights and their average are there."""
    averages, plain = [n for n in names if _is_average(n)], [n for n in names if not _is_average(n)]
    if not averages or not plain:
        return names[0]
    taken = {"auto": names, "ema": averages, "plain": plain}[_wanted()][0]
    _tell(file, taken, plain[0] if _is_average(taken) else averages[0], _is_average(taken))
    return taken


def _wanted() -> Weights:
    """Which is taken where there is a choice."""
    if (preferred := _preferred.get()) is None:
        return "auto"
    preferred.asked += 1
    return preferred.weights


def _tell(file: Path | str, taken: str, other: str, average: bool) -> None:
    kinds = ("average (EMA)", "plain weights")
    of_taken, of_other = kinds if average else kinds[::-1]
    choice = "plain" if average else "ema"
    warnings.warn(
        f"{file} holds both: the {of_taken} in {taken.rstrip('.')} are taken; the {of_other} in {other.rstrip('.')} by "
        f"`restorl convert --weights {choice}`",
        stacklevel=2,
    )


def _without_wrappers(state: dict[str, Tensor], file: Path | str) -> dict[str, Tensor]:
    renamed = {".".join(s for s in key.split(".") if s not in _ANYWHERE): value for key, value in state.items()}
    if len(renamed) != len(state):
        raise CheckpointError(f"{file} holds keys twice, with and without {' or '.join(_ANYWHERE)}; save it again")
    rest = {k: v for k, v in renamed.items() if k not in _BOOKKEEPING or v.numel() != 1}
    while rest and all(k.startswith("module.") for k in rest):
        renamed = rest = {k.removeprefix("module."): v for k, v in rest.items()}
    return renamed


def _flat_average(state: dict[str, Tensor], file: Path | str) -> dict[str, Tensor]:
    """Latent Diffusion's average, where it is preferred, in the place of the weights; else without it."""
    averages = {k: v for k, v in state.items() if k.startswith(_AVERAGE)}
    values = {k: v for k, v in averages.items() if k.removeprefix(_AVERAGE) not in _BOOKKEEPING}
    plain = {k: v for k, v in state.items() if k not in averages}
    weights = [k for k in plain if k.startswith("model.")]
    names = {average_of(k): k for k in weights} | {_AVERAGE + k.removeprefix("model."): k for k in weights}
    flat = [k for k in values if "." not in k.removeprefix(_AVERAGE)]
    if not values or not (weights or flat):
        return state
    ema = bool(weights) and _wanted() == "ema"
    unknown = [k for k in values if k not in names]
    if unknown and (ema or not weights):
        raise CheckpointError(
            f"{file}: {first(unknown)} are averages of weights that it doesn't hold, and their names have lost their "
            "dots; give the file with the weights beside them"
        )
    _tell(file, *(("model_ema", "model") if ema else ("model", "model_ema")), ema)
    return plain | ({names[k]: v for k, v in values.items()} if ema else {})


def _prefixes(state: Mapping[str, Tensor]) -> set[str]:
    """What known wrappers may have put before the keys, such as "net_g.module.", or "" for nothing."""
    found = {""}
    for key in state:
        prefix = ""
        for segment in key.split(".")[:-1]:
            if segment not in _WORDS:
                break
            prefix += f"{segment}."
            found.add(prefix)
    return found
