"""Low-rank updates that belong to a base model (PiSA-SR, TSD-SR): W x + s B A x, in released files lora_A and lora_B.

They are part of the SFT policy and therefore no peft layers: RL's LoRA is one, and switching it off for the reference
policy, or merging it, must leave these alone. An updated layer is still an `nn.Linear` or `nn.Conv2d` whose weights
keep their names, so that RL's LoRA attaches to it as to any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from restoration.checkpoints import Shapes, check_shapes, empty, put
from restoration.state_dicts import unprefixed

_active: ContextVar[frozenset[str] | None] = ContextVar("active low-rank updates", default=None)
_RELEASED = re.compile(r"(?P<module>.+)\.lora_(?P<matrix>[AB])(?:\.(?P<name>[^.]+))?\.weight")
_MATRICES = {"A": "down", "B": "up"}


@contextmanager
def active(names: Iterable[str] | None) -> Iterator[None]:
    """Inside, in this thread, layers add the updates of these names only; None means all, as outside."""
    token = _active.set(None if names is None else frozenset(names))
    try:
        yield
    finally:
        _active.reset(token)


class LowRank(nn.Module):
    """The update s B A x of a layer: a map of the layer's own geometry to `rank` channels, and one back."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Conv2d):
            geometry: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, False)
            self.down = nn.Conv2d(layer.in_channels, rank, *geometry)
            self.up = nn.Conv2d(rank, layer.out_channels, 1, groups=layer.groups, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = self.up(self.down(x)) * self.scale
        return update


class _Updated(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.updates = nn.ModuleDict()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        names = _active.get()
        for name, update in self.updates.items():
            if names is None or name in names:
                out = out + update(x)
        return out


class UpdatedLinear(_Updated, nn.Linear):
    """A linear layer with updates by name."""


class UpdatedConv2d(_Updated, nn.Conv2d):
    """A convolution with updates by name."""


class RemembersActive:
    """Before a diffusers network among the bases: gradient checkpointing recomputes with its forward's updates."""

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any] | None = None) -> None:
        """As diffusers', for the network's blocks."""

        def run(function: Callable[..., Any], *args: Any) -> Any:
            names = _active.get()

            def again(*inputs: Any) -> Any:
                with active(names):
                    return function(*inputs)

            if gradient_checkpointing_func is not None:
                return gradient_checkpointing_func(again, *args)
            return checkpoint(again, *args, use_reentrant=False)

        super().enable_gradient_checkpointing(run)  # type: ignore[misc]


@dataclass(frozen=True)
class Release:
    """How a file names and scales its updates.

    Attributes:
        prefix: before the module's name in every key.
        name: the update's, for keys without one (`<module>.lora_A.weight`, not `<module>.lora_A.<name>.weight`).
        alpha: the scale is alpha / rank; None is alpha = rank.
    """

    prefix: str = ""
    name: str | None = None
    alpha: float | None = None

    def read(self, key: str) -> tuple[str, str, str] | None:
        """Module, the update's name and "A" or "B" of a key; None if it is no such key."""
        found = _RELEASED.fullmatch(key.removeprefix(self.prefix)) if key.startswith(self.prefix) else None
        if found is None or (found["name"] is None) == (self.name is None):
            return None
        return found["module"], found["name"] or str(self.name), found["matrix"]

    def key(self, module: str, name: str, matrix: str) -> str:
        """The inverse of `read`."""
        return f"{self.prefix}{module}.lora_{matrix}.{'' if self.name else name + '.'}weight"


def attach(network: nn.Module, shapes: Shapes, release: Release, file: str) -> dict[str, str]:
    """Add the updates, without weights, that a released file holds by its keys and shapes; ranks are its own.

    Returns:
        The network's key of each released one.

    Raises:
        CheckpointError: naming keys for which the network has no layer or an update already, half an update, or shapes
            that don't fit the layer; the network is then as before.
    """
    layers = dict(network.named_modules())
    made: dict[tuple[str, str], LowRank] = {}
    wanted: dict[str, tuple[int, ...]] = {}
    for key in sorted(shapes):
        module, name, matrix = release.read(key) or ("", "", "")
        layer = layers.get(module)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or (module, name) in made:
            continue
        if len(shapes[key]) < 2 or 0 in shapes[key]:
            continue
        if isinstance(layer, _Updated) and name in layer.updates:
            continue
        rank = shapes[key][0 if matrix == "A" else 1]
        scale = 1.0 if release.alpha is None else release.alpha / rank
        made[module, name] = update = empty(partial(LowRank, layer, rank, scale))
        for half, part in _MATRICES.items():
            wanted[release.key(module, name, half)] = tuple(update.get_parameter(f"{part}.weight").shape)
    found = {k: tuple(v) for k, v in shapes.items()}
    check_shapes(wanted, found, f"{file} does not fit the layers of {type(network).__name__}")
    for (module, name), update in made.items():
        _updated(network, module).updates[name] = update
    return {
        release.key(module, name, half): f"{module}.updates.{name}.{part}.weight"
        for module, name in made
        for half, part in _MATRICES.items()
    }


def load_updates(network: nn.Module, state: Mapping[str, Tensor], release: Release, file: str) -> None:
    """Attach and fill, as float32, the updates of a released file; every key is used. Raises CheckpointError.

    A wrapper's prefix before every key is taken off.
    """
    layers = {name for name, _ in network.named_modules()}

    def fits(key: str) -> bool:
        found = release.read(key)
        return found is not None and found[0] in layers

    state = unprefixed(state, fits, file, uniform=True)
    keys = attach(network, {k: tuple(v.shape) for k, v in state.items()}, release, file)
    put(network, {keys[k]: v for k, v in state.items()}, strict=False)


def updates_state(network: nn.Module, release: Release) -> dict[str, Tensor]:
    """The weights of a network's updates by their released keys: what `load_updates` reads."""
    return {
        release.key(module, name, half): update.get_parameter(f"{part}.weight").detach()
        for module, layer in network.named_modules()
        if isinstance(layer, _Updated)
        for name, update in layer.updates.items()
        for half, part in _MATRICES.items()
    }


def stock_key(key: str) -> str | None:
    """A network's key in its file without updates; None if it is one of an update."""
    return None if ".updates." in key else key


def updates_of(network: nn.Module) -> set[str]:
    """The names of the updates that the layers of a network have."""
    return {name for module in network.modules() if isinstance(module, _Updated) for name in module.updates}


def parameters_of(network: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """The names in `network` of the parameters of these updates, in its order.

    Raises:
        ValueError: no layer has an update of such a name.
    """
    names = set(names)
    if unknown := names - updates_of(network):
        raise ValueError(f"no update {sorted(unknown)}; there are {sorted(updates_of(network))}")
    wanted = re.compile(rf"(?:.*\.)?updates\.(?:{'|'.join(map(re.escape, names))})\.(?:down|up)\.weight")
    return tuple(key for key, _ in network.named_parameters() if wanted.fullmatch(key))


def _updated(network: nn.Module, module: str) -> UpdatedLinear | UpdatedConv2d:
    """The layer at this place, replaced by one that can have updates unless it is one."""
    layer: Any = network.get_submodule(module)
    if isinstance(layer, UpdatedLinear | UpdatedConv2d):
        return layer
    new: UpdatedLinear | UpdatedConv2d
    bias = layer.bias is not None
    if isinstance(layer, nn.Conv2d):
        geometry: Any = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
        arguments = (layer.in_channels, layer.out_channels, *geometry, bias, layer.padding_mode)
        new = empty(lambda: UpdatedConv2d(*arguments))
    else:
        new = empty(lambda: UpdatedLinear(layer.in_features, layer.out_features, bias))
    new.weight, new.bias = layer.weight, layer.bias
    new.train(layer.training)
    parent, _, attribute = module.rpartition(".")
    setattr(network.get_submodule(parent), attribute, new)
    return new
