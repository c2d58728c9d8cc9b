"""StableSR's networks -> the layout of its released file, for other programs that run it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from restoration import ldm_layout
from restoration.base_models.networks.stablesr_networks import StableSRPolicy
from restoration.base_models.networks.stablesr_released import ATTENTION, SPADE, STRUCTURE_PREFIX
from restoration.base_models.networks.structure import StructureEncoder
from restoration.ldm_layout import RESNET, UNET_PREFIX, Layout


def released_state(policy: StableSRPolicy) -> dict[str, Tensor]:
    """Tensors of UNet and structure encoder by their released names, on their device; what trained is among them."""
    unet, encoder = layout_of(policy.unet), layout_of(policy.structure_encoder)
    split = encoder.restored(policy.structure_encoder.state_dict())
    parts = {
        UNET_PREFIX: unet.restored(policy.unet.state_dict()),
        STRUCTURE_PREFIX: _joined_attentions(split, policy.structure_encoder.config.heads),
    }
    return {prefix + key: v.detach().clone() for prefix, state in parts.items() for key, v in state.items()}


def layout_of(network: Any) -> Layout:
    """Which released module is which of the UNet's or the structure encoder's."""
    encodes = isinstance(network, StructureEncoder)
    # the UNet's transformers keep their names
    layout = ldm_layout.layout_of(
        network, RESNET | {f"spade.{old}": f"spade.{new}" for old, new in SPADE.items()}, ATTENTION if encodes else None
    )
    for level in range(len(network.outs) if encodes else 0):
        layout.add(f"fea_tran.{level}", f"outs.{level}", RESNET)
    return layout


def _joined_attentions(state: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Attentions as 1D convolutions, q, k and v as one with rows [head, (q, k, v), channel]."""
    joined = {}
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        block, _, layer = path.rpartition(".")
        if layer in ("k", "v"):
            continue
        if layer == "q":
            rows = [state[f"{block}.{letter}.{name}"].unflatten(0, (heads, -1)) for letter in "qkv"]
            key, value = f"{block}.qkv.{name}", torch.stack(rows, 1).flatten(0, 2)
        joined[key] = value[..., None] if name == "weight" and layer in ("q", "proj_out") else value
    return joined
