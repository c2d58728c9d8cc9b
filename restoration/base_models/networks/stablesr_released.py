"""Released StableSR files, in the Latent Diffusion layout -> our networks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

from restoration.base_models.networks.fused_vae import FusedVAE
from restoration.base_models.networks.spade import spade_unet
from restoration.base_models.networks.stablesr_networks import StableSRPolicy
from restoration.base_models.networks.structure import StructureEncoder
from restoration.checkpoints import CheckpointError, Shapes, about, children, empty, load_strict
from restoration.ldm_layout import RESNET, UNET_PREFIX, Layout, part, unet_layout, vae_layout
from restoration.state_dicts import within

STRUCTURE_PREFIX = "structcond_stage_model."
LOSS_PREFIX = "loss."
"""Of the discriminator and the LPIPS network in the released CFW file; only its training used them."""

SPADE = {"param_free_norm": "norm", "mlp_shared.0": "shared", "mlp_gamma": "gamma", "mlp_beta": "beta"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def policy_from_released(
    state: Mapping[str, Tensor],
    file: Path | str,
    *,
    head_channels: int | None = 64,
    heads: int | None = None,
    structure_heads: int = 4,
) -> StableSRPolicy:
    """The two networks of a released StableSR file, which also holds autoencoder, text tower and schedule (left alone).

    Args:
        head_channels, heads: of the UNet, as `unet_layout`.
        structure_heads: of the structure encoder's attentions.

    Raises:
        CheckpointError: a network is absent, keys are missing or unexpected, shapes differ.
    """
    unet = spade_unet_from_released(part(state, UNET_PREFIX), file, head_channels=head_channels, heads=heads)
    encoder = structure_encoder_from_released(part(state, STRUCTURE_PREFIX), file, heads=structure_heads)
    return StableSRPolicy(unet, encoder).eval()


def spade_unet_from_released(
    state: Mapping[str, Tensor], file: Path | str, *, head_channels: int | None = 64, heads: int | None = None
) -> UNet2DConditionModel:
    """UNet with SPADE, prefix removed; arguments as `unet_layout`. Raises CheckpointError."""
    shapes = _shapes(state)
    with about(file):
        layout = spade_unet_layout(shapes, head_channels=head_channels, heads=heads)
        hidden, features = _shape(shapes, "middle_block.0.spade.mlp_shared.0.weight")[:2]
    unet = empty(lambda: spade_unet(layout.config, features, hidden))
    load_strict(unet, layout.convert(state), file, shown=layout.released)
    return unet.eval()


def spade_unet_layout(shapes: Shapes, *, head_channels: int | None = 64, heads: int | None = None) -> Layout:
    """`unet_layout` with the SPADE of each residual block. Raises CheckpointError."""
    layout = unet_layout(shapes, head_channels=head_channels, heads=heads)
    if layout.config["resnet_time_scale_shift"] != "default":
        raise CheckpointError("a time embedding that scales (use_scale_shift_norm) is not StableSR's")
    for released, ours in list(layout.modules.items()):
        if released.endswith(".in_layers.0"):
            layout.add(f"{released.removesuffix('.in_layers.0')}.spade", f"{ours.removesuffix('.norm1')}.spade", SPADE)
    return layout


def structure_encoder_from_released(
    state: Mapping[str, Tensor], file: Path | str, *, heads: int = 4
) -> StructureEncoder:
    """Structure encoder, prefix removed.

    Args:
        heads: of every attention, which leave no trace in the file.

    Raises:
        CheckpointError: keys are missing or unexpected, shapes differ, heads don't divide the widths.
    """
    with about(file):
        layout = structure_layout(_shapes(state), heads)
    encoder = empty(lambda: StructureEncoder(**layout.config))
    converted = {layout.rename(k): v for k, v in _split_attentions(state, heads).items()}
    load_strict(encoder, converted, file, shown=layout.released)
    return encoder.eval()


def structure_layout(shapes: Shapes, heads: int) -> Layout:
    """Layout of a structure encoder as arguments of `StructureEncoder`, its attentions split as `q`, `k` and `v`."""
    layout, widths, attention, count, index = Layout(), [0], [False], 0, 1
    while any(k.startswith(f"input_blocks.{index}.0.") for k in shapes):
        released, block = f"input_blocks.{index}", f"down_blocks.{len(widths) - 1}"
        if f"{released}.0.op.weight" in shapes:
            layout.add(f"{released}.0.op", f"{block}.downsamplers.0.conv")
            widths.append(0)
            attention.append(False)
            count = 0
        else:
            widths[-1] = _shape(shapes, f"{released}.0.out_layers.3.weight")[0]
            attention[-1] = f"{released}.1.norm.weight" in shapes
            layout.add(f"{released}.0", f"{block}.resnets.{count}", RESNET)
            layout.add(f"{released}.1", f"{block}.attentions.{count}", ATTENTION)
            count += 1
        index += 1
    layout.add("input_blocks.0.0", "conv_in")
    layout.add("time_embed.0", "time_embedding.linear_1")
    layout.add("time_embed.2", "time_embedding.linear_2")
    layout.add("middle_block.0", "mid_block.resnets.0", RESNET)
    layout.add("middle_block.1", "mid_block.attentions.0", ATTENTION)
    layout.add("middle_block.2", "mid_block.resnets.1", RESNET)
    for level in range(len(widths)):
        layout.add(f"fea_tran.{level}", f"outs.{level}", RESNET)
    if bad := [w for w, a in zip(widths, [*attention[:-1], True], strict=True) if a and w % heads]:
        raise CheckpointError(f"structure encoder: {heads} heads don't divide widths {bad}; give its number of heads")
    base, latent = _shape(shapes, "input_blocks.0.0.weight")[:2]
    layout.config = {
        "in_channels": latent,
        "base_channels": base,
        "block_out_channels": tuple(widths),
        "attention": tuple(attention),
        "layers_per_block": count,
        "out_channels": _shape(shapes, "fea_tran.0.out_layers.3.weight")[0],
        "heads": heads,
    }
    return layout


def _split_attentions(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Attentions as linear layers q, k and v; released: one 1D convolution with rows [head, (q, k, v), channel]."""
    split = {}
    for key, value in state.items():
        if value.ndim == 3:
            value = value.flatten(1)
        path, _, name = key.rpartition(".")
        if path.endswith(".qkv"):
            for letter, rows in zip("qkv", value.unflatten(0, (heads, 3, -1)).unbind(1), strict=True):
                split[f"{path.removesuffix('qkv')}{letter}.{name}"] = rows.flatten(0, 1)
        else:
            split[key] = value
    return split


def fused_vae_from_released(state: Mapping[str, Tensor], file: Path | str) -> FusedVAE:
    """CFW autoencoder; keys below `LOSS_PREFIX` are ignored.

    Raises:
        CheckpointError: no fusion in the file, other keys are missing or unexpected, shapes differ.
    """
    state = within(state, ["encoder.conv_in.weight"], file, "the CFW autoencoder")
    used = {k: v for k, v in state.items() if not k.startswith(LOSS_PREFIX)}
    shapes = _shapes(used)
    with about(file):
        layout, fusions = fused_vae_layout(shapes)
    if not fusions:
        raise CheckpointError(f"{file}: decoder.fusion_layer_* is missing; is this the CFW autoencoder?")
    dense = f"{fusions[0]}.encode_enc_2"
    growth = _shape(shapes, f"{dense}.0.rdb1.conv1.weight")[0]
    levels = [int(f.rpartition("_")[2]) for f in fusions]

    def made() -> FusedVAE:
        return FusedVAE(AutoencoderKL(**layout.config), levels, children(shapes, dense), growth)

    network = empty(made)
    load_strict(network, layout.convert(used), file, shown=layout.released)
    return network.eval()


def fused_vae_layout(shapes: Shapes) -> tuple[Layout, list[str]]:
    """`vae_layout` inside a `FusedVAE`, and the released paths of its fusions. Raises CheckpointError."""
    layout = vae_layout(shapes)
    layout.modules = {released: f"vae.{ours}" for released, ours in layout.modules.items()}
    layout.flat = {f"vae.{ours}" for ours in layout.flat}
    for conv in ("quant_conv", "post_quant_conv"):
        layout.add(conv, f"vae.{conv}")
    fusions = sorted({m[0] for k in shapes if (m := re.match(r"decoder\.fusion_layer_\d+", k))})
    for fusion in fusions:
        ours = f"fusions.{fusion.rpartition('_')[2]}"
        for released, name in (("encode_enc_1", "enter"), ("encode_enc_3", "leave")):
            layout.add(f"{fusion}.{released}", f"{ours}.{name}")
            layout.add(f"{fusion}.{released}.conv_out", f"{ours}.{name}.conv_shortcut")
        for i in range(children(shapes, f"{fusion}.encode_enc_2")):
            for j in range(3):
                convs = {f"conv{k + 1}": f"convs.{k}" for k in range(5)}
                layout.add(f"{fusion}.encode_enc_2.{i}.rdb{j + 1}", f"{ours}.dense.{i}.blocks.{j}", convs)
    return layout, fusions


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in state.items()}


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise CheckpointError(f"key {key} of StableSR is missing; is this the right file?")
    return tuple(shapes[key])
