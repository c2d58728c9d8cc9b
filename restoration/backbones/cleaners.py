"""Networks that make the clean condition: Restormer, SNR-aware for low light, and a gated U-Net of our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from restoration.backbones import gated_unet, restormer, snr
from restoration.backbones.gated_unet import GatedUNet, GatedUNetConfig
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.backbones.snr import SNRAware, SNRConfig
from restoration.checkpoints import CheckpointError, Shapes, empty, load_strict
from restoration.file_kinds import first
from restoration.state_dicts import unprefixed

_LANDMARKS = ("patch_embed.proj.weight", "conv_first_1.weight", "bottom.0.project_out.weight")
Cleaner = Restormer | SNRAware | GatedUNet
"""float32 [B, 3, H, W] in [0, 1] -> the same, not clamped; H and W multiples of its `size_multiple`."""
_KINDS: dict[str, tuple[Any, Any]] = {
    "restormer": (Restormer, RestormerConfig),
    "snr": (SNRAware, SNRConfig),
    "gated_unet": (GatedUNet, GatedUNetConfig),
}


def empty_cleaner(shapes: Shapes, file: Path | str, **choices: Any) -> Cleaner:
    """The network that keys and shapes of a released file belong to, without weights.

    Args:
        choices: what no shape tells (`snr.config_from_shapes`).

    Raises:
        CheckpointError: no such network's keys, or widths that fit no such network.
    """
    try:
        if _LANDMARKS[0] in shapes:
            config = restormer.config_from_shapes(shapes, **choices)
            return empty(lambda: Restormer(config))
        if _LANDMARKS[1] in shapes:
            of_snr = snr.config_from_shapes(shapes, **choices)
            return empty(lambda: SNRAware(of_snr))
        if _LANDMARKS[2] in shapes:
            of_gated = gated_unet.config_from_shapes(shapes)
            return empty(lambda: GatedUNet(of_gated))
    except KeyError as error:
        raise CheckpointError(f"{file} holds no whole cleaner: key {error} is missing") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    raise CheckpointError(
        f"{file} holds no cleaner: neither {_LANDMARKS[0]} (Restormer) nor {_LANDMARKS[1]} (SNR-aware) nor "
        f"{_LANDMARKS[2]} (gated U-Net) is among its keys, which begin {first(shapes)}"
    )


def training_loss(cleaner: nn.Module, restored: Tensor, gt: Tensor) -> Tensor:
    """What the cleaner's authors minimise, float32 [B]: mean L1, or the Charbonnier mean √(d² + 1e-6) of SNR-aware."""
    difference = restored.float() - gt
    each = (difference.square() + 1e-6).sqrt() if isinstance(cleaner, SNRAware) else difference.abs()
    return each.flatten(1).mean(1)


def cleaner_from_released(state: Mapping[str, Tensor], file: Path | str, **choices: Any) -> Cleaner:
    """A cleaner with its released keys, a wrapper's prefix before them or not; `choices` as for `empty_cleaner`.

    Raises:
        CheckpointError: keys or shapes of no cleaner.
    """
    state = unprefixed(state, _LANDMARKS.__contains__, file)
    network = empty_cleaner({k: tuple(v.shape) for k, v in state.items()}, file, **choices)
    load_strict(network, state, file)
    return network.eval()


def config_of(cleaner: Cleaner) -> dict[str, Any]:
    """What `cleaner_of` reads, as plain JSON values."""
    kind = next(name for name, (network, _) in _KINDS.items() if isinstance(cleaner, network))
    return {"kind": kind, **cleaner.config_dict()}


def cleaner_of(config: Mapping[str, Any]) -> Cleaner:
    """An empty cleaner by its `config_of`; a configuration without a kind is a Restormer's.

    Raises:
        TypeError, ValueError: a configuration of no cleaner.
    """
    values = dict(config)
    kind = values.pop("kind", "restormer")
    if kind not in _KINDS:
        raise ValueError(f"kind={kind!r} of a cleaner: choose {', '.join(_KINDS)}")
    network, settings = _KINDS[kind]
    chosen = settings(**values)
    made: Cleaner = empty(lambda: network(chosen))
    return made
