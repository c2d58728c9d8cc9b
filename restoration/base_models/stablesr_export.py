"""StableSR's networks -> the layout of its released file, for other programs that run it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from restoration.base_models.stablesr_networks import StableSRPolicy
from restoration.base_models.stablesr_released import ATTENTION, SPADE, STRUCTURE_PREFIX
from restoration.base_models.structure import StructureEncoder
from restoration.ldm_layout import RESNET, UNET_PREFIX, Layout


def released_state(policy: StableSRPolicy) -> dict[str, Tensor]:
    """Tensors of UNet and structure encoder by their released names, on their device; what trained is among them."""
    unet, encoder = layout_of(policy.unet), layout_of(policy.structure_encoder)
    state = {f"{UNET_PREFIX}{unet.released(k)}": v.detach().clone() for k, v in policy.unet.state_dict().items()}
    split = {encoder.released(k): v.detach().clone() for k, v in policy.structure_encoder.state_dict().items()}
    joined = _joined_attentions(split, policy.structure_encoder.config.heads)
    return state | {f"{STRUCTURE_PREFIX}{k}": v for k, v in joined.items()}


def layout_of(network: Any) -> Layout:
    """Which released module is which of the UNet's or the structure encoder's."""
    layout = Layout()
    below = ATTENTION if isinstance(network, StructureEncoder) else None  # the UNet's transformers keep their names

    def add(released: str, block: str, index: int, attends: bool) -> None:
        layout.add(f"{released}.0", f"{block}.resnets.{index}", RESNET)
        layout.add(f"{released}.0.spade", f"{block}.resnets.{index}.spade", SPADE)
        if attends:
            layout.add(f"{released}.1", f"{block}.attentions.{index}", below)

    layout.add("time_embed.0", "time_embedding.linear_1")
    layout.add("time_embed.2", "time_embedding.linear_2")
    layout.add("input_blocks.0.0", "conv_in")
    count = 1
    for level, block in enumerate(network.down_blocks):
        for i in range(len(block.resnets)):
            add(f"input_blocks.{count}", f"down_blocks.{level}", i, hasattr(block, "attentions"))
            count += 1
        if block.downsamplers:
            layout.add(f"input_blocks.{count}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
            count += 1
    layout.add("middle_block.0", "mid_block.resnets.0", RESNET)
    layout.add("middle_block.0.spade", "mid_block.resnets.0.spade", SPADE)
    layout.add("middle_block.1", "mid_block.attentions.0", below)
    layout.add("middle_block.2", "mid_block.resnets.1", RESNET)
    layout.add("middle_block.2.spade", "mid_block.resnets.1.spade", SPADE)
    if isinstance(network, StructureEncoder):
        for level in range(len(network.outs)):
            layout.add(f"fea_tran.{level}", f"outs.{level}", RESNET)
        return layout
    count = 0
    for level, block in enumerate(network.up_blocks):
        attends = hasattr(block, "attentions")
        for i in range(len(block.resnets)):
            add(f"output_blocks.{count}", f"up_blocks.{level}", i, attends)
            count += 1
        if block.upsamplers:
            layout.add(f"output_blocks.{count - 1}.{1 + attends}.conv", f"up_blocks.{level}.upsamplers.0.conv")
    layout.add("out.0", "conv_norm_out")
    layout.add("out.2", "conv_out")
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
