"""The key layout of Latent Diffusion checkpoints (Stable Diffusion 1/2, DiffBIR) in terms of diffusers' networks.

The structure is read off the keys and shapes themselves, so that one function serves every width and depth; only
the number of attention heads leaves no trace in a checkpoint and must be given. `shapes` arguments are
{key: shape} with the part's prefix already removed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from restoration.checkpoints import CheckpointError, Shapes, children
from restoration.state_dicts import unprefixed

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


@dataclass
class Layout:
    """Arguments of the diffusers class, and which released module is which of its modules.

    Attributes:
        config: constructor arguments.
        modules: released module path -> ours; a path stands for everything below it.
        flat: our modules whose 1x1 convolution weights [a, b, 1, 1] are linear weights [a, b].
    """

    config: dict[str, Any] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    flat: set[str] = field(default_factory=set)

    def add(self, released: str, ours: str, below: Mapping[str, str] | None = None) -> None:
        for old, new in below.items() if below else [("", "")]:
            self.modules[f"{released}.{old}".rstrip(".")] = f"{ours}.{new}".rstrip(".")

    def rename(self, key: str) -> str:
        """Our name of a released key; a key outside the layout keeps its name."""
        return _translate(key, self.modules)

    def released(self, key: str) -> str:
        """The released name of one of our keys."""
        return _translate(key, {new: old for old, new in self.modules.items()})

    def restored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict under its released names; shapes stay (there is no `flat` module in a UNet)."""
        return {self.released(k): v for k, v in state.items()}

    def shapes(self, shapes: Shapes) -> dict[str, tuple[int, ...]]:
        """{released key: shape} -> {our key: shape}."""
        return {new: self._shape(new, tuple(shape)) for new, shape in ((self.rename(k), v) for k, v in shapes.items())}

    def convert(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A released state dict in our names and shapes."""
        renamed = {self.rename(k): v for k, v in state.items()}
        return {k: v.reshape(self._shape(k, tuple(v.shape))) for k, v in renamed.items()}

    def _shape(self, key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        flat = key.rpartition(".")[0] in self.flat and len(shape) == 4 and shape[2:] == (1, 1)
        return shape[:2] if flat else shape


def _translate(key: str, modules: Mapping[str, str]) -> str:
    path = key
    while path:
        if path in modules:
            return modules[path] + key[len(path) :]
        path = path.rpartition(".")[0]
    return key


def part(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries below `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def bare(state: Mapping[str, Tensor], file: Path | str) -> dict[str, Tensor]:
    """A whole Latent Diffusion file's state dict, without what a wrapper put before every key."""
    return unprefixed(state, lambda key: key.startswith(UNET_PREFIX), file, uniform=True)


def unet_layout(shapes: Shapes, *, head_channels: int | None = 64, heads: int | None = None) -> Layout:
    """Layout of a UNet as arguments of `UNet2DConditionModel`.

    Args:
        head_channels: channels of one attention head (SD 2: 64); or else
        heads: heads of every attention layer (SD 1: 8).

    Raises:
        CheckpointError: the keys are no such UNet's.
    """
    layout, levels = _encoder(shapes, head_channels, heads, "UNet2DConditionModel")
    layout.config["out_channels"] = _shape(shapes, "out.2.weight")[0]
    layout.config["up_block_types"] = tuple(
        "CrossAttnUpBlock2D" if level.attention else "UpBlock2D" for level in reversed(levels)
    )
    layout.add("out.0", "conv_norm_out")
    layout.add("out.2", "conv_out")
    index = 0
    for up, level in enumerate(reversed(levels)):
        for i in range(level.layers + 1):
            block = f"output_blocks.{index}"
            layout.add(f"{block}.0", f"up_blocks.{up}.resnets.{i}", RESNET)
            if level.attention:
                layout.add(f"{block}.1", f"up_blocks.{up}.attentions.{i}")
            if i == level.layers and up + 1 < len(levels):
                layout.add(f"{block}.{1 + level.attention}.conv", f"up_blocks.{up}.upsamplers.0.conv")
            index += 1
    return layout


def controlnet_layout(shapes: Shapes, *, head_channels: int | None = 64, heads: int | None = None) -> Layout:
    """Layout of DiffBIR's IRControlNet as arguments of `ControlNetModel`; arguments and errors as `unet_layout`."""
    layout, levels = _encoder(shapes, head_channels, heads, "ControlNetModel")
    for i in range(sum(level.layers + 1 for level in levels)):
        layout.add(f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}")
    layout.add("middle_block_out.0", "controlnet_mid_block")
    return layout


def layout_of(network: Any, resnet: Mapping[str, str] = RESNET, attention: Mapping[str, str] | None = None) -> Layout:
    """Which released module is which of a UNet's, or of its like without a decoder, such as a ControlNet.

    Args:
        network: of diffusers' blocks.
        resnet, attention: released module -> ours inside a block; None: transformers keep their names.
    """
    layout, count = Layout(), 1

    def add(released: str, block: str, index: int, attends: bool) -> None:
        layout.add(f"{released}.0", f"{block}.resnets.{index}", resnet)
        if attends:
            layout.add(f"{released}.1", f"{block}.attentions.{index}", attention)

    layout.add("time_embed.0", "time_embedding.linear_1")
    layout.add("time_embed.2", "time_embedding.linear_2")
    layout.add("input_blocks.0.0", "conv_in")
    for level, block in enumerate(network.down_blocks):
        for i in range(len(block.resnets)):
            add(f"input_blocks.{count}", f"down_blocks.{level}", i, hasattr(block, "attentions"))
            count += 1
        if block.downsamplers:
            layout.add(f"input_blocks.{count}.0.op", f"down_blocks.{level}.downsamplers.0.conv")
            count += 1
    layout.add("middle_block.0", "mid_block.resnets.0", resnet)
    layout.add("middle_block.1", "mid_block.attentions.0", attention)
    layout.add("middle_block.2", "mid_block.resnets.1", resnet)
    if hasattr(network, "controlnet_mid_block"):
        for i in range(len(network.controlnet_down_blocks)):
            layout.add(f"zero_convs.{i}.0", f"controlnet_down_blocks.{i}")
        layout.add("middle_block_out.0", "controlnet_mid_block")
    if not hasattr(network, "up_blocks"):
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


@dataclass
class _Level:
    width: int = 0
    layers: int = 0
    attention: bool = False
    depth: int = 1


def _encoder(shapes: Shapes, head_channels: int | None, heads: int | None, what: str) -> tuple[Layout, list[_Level]]:
    """Input blocks, middle block and time embedding, which UNet and ControlNet share."""
    layout, levels, index = Layout(), [_Level()], 1
    modules = {".".join(k.split(".")[:3]) for k in shapes}
    layout.add("input_blocks.0.0", "conv_in")
    layout.add("time_embed.0", "time_embedding.linear_1")
    layout.add("time_embed.2", "time_embedding.linear_2")
    while f"input_blocks.{index}.0" in modules:
        block, level, down = f"input_blocks.{index}", levels[-1], f"down_blocks.{len(levels) - 1}"
        if f"{block}.0.op.weight" in shapes:
            layout.add(f"{block}.0.op", f"{down}.downsamplers.0.conv")
            levels.append(_Level())
        else:
            level.width = _shape(shapes, f"{block}.0.out_layers.3.weight")[0]
            layout.add(f"{block}.0", f"{down}.resnets.{level.layers}", RESNET)
            attention = f"{block}.1" in modules
            if level.layers and attention != level.attention:
                raise CheckpointError(f"{block}: attention must be in all or none of a level's blocks for {what}")
            if attention:
                layout.add(f"{block}.1", f"{down}.attentions.{level.layers}")
                level.attention, level.depth = True, _depth(shapes, f"{block}.1")
            level.layers += 1
        index += 1
    if not all(level.layers for level in levels):
        raise CheckpointError(f"no {what} of the Latent Diffusion layout: input_blocks.* of a level are missing")
    layout.add("middle_block.0", "mid_block.resnets.0", RESNET)
    layout.add("middle_block.1", "mid_block.attentions.0")
    layout.add("middle_block.2", "mid_block.resnets.1", RESNET)
    middle = "middle_block.1"
    if not levels[-1].attention:
        levels[-1].depth = _depth(shapes, middle)  # diffusers gives the middle block the last level's depth
    embedding = _shape(shapes, "middle_block.0.emb_layers.1.weight")[0]
    width = tuple(level.width for level in levels)
    # the middle block, as wide as the last level, always attends
    attending = [level.width for level in levels if level.attention] + [width[-1]]
    if bad := [w for w in attending if w % (head_channels or heads or 1)]:
        raise CheckpointError(
            f"{what}: {f'heads of {head_channels} channels' if head_channels else f'{heads} heads'} don't divide "
            f"widths {bad}; give the head size this checkpoint was trained with"
        )
    if width[0] != _shape(shapes, "input_blocks.0.0.weight")[0]:
        raise CheckpointError(f"{what}: the first level must be as wide as the first convolution (channel_mult[0] = 1)")
    layers, depths = tuple(v.layers for v in levels), tuple(v.depth for v in levels)
    if what == "ControlNetModel" and len(set(layers)) > 1:
        raise CheckpointError(f"{what} needs the same number of blocks at each level, found {layers}")
    layout.config = {
        "in_channels": _shape(shapes, "input_blocks.0.0.weight")[1],
        "block_out_channels": width,
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if v.attention else "DownBlock2D" for v in levels),
        "transformer_layers_per_block": depths[0] if len(set(depths)) == 1 else depths,
        # diffusers' attention_head_dim is, despite its name, the number of heads
        "attention_head_dim": tuple(max(1, w // head_channels) if head_channels else heads for w in width),
        "cross_attention_dim": _shape(shapes, f"{middle}.transformer_blocks.0.attn2.to_k.weight")[1],
        "use_linear_projection": len(_shape(shapes, f"{middle}.proj_in.weight")) == 2,
        "resnet_time_scale_shift": "scale_shift" if embedding == 2 * width[-1] else "default",
    }
    return layout, levels


def vae_layout(shapes: Shapes) -> Layout:
    """Layout of a KL autoencoder as arguments of `AutoencoderKL`. Raises CheckpointError as `unet_layout`."""
    layout = Layout()
    levels = children(shapes, "encoder.down")
    layers = children(shapes, "encoder.down.0.block")
    if not levels or not layers:
        raise CheckpointError("no autoencoder of the Latent Diffusion layout: encoder.down.* is missing")
    latent, embedded = _shape(shapes, "post_quant_conv.weight")[:2]
    if latent != embedded:
        raise CheckpointError(f"embed_dim {embedded} differs from z_channels {latent}; AutoencoderKL has only one")
    attends = [f"encoder.down.{i}.attn.0.q.weight" in shapes for i in range(levels)]
    for side in ("encoder", "decoder"):
        blocks = "down" if side == "encoder" else "up"
        for i in range(levels):
            # the decoder counts its released levels from the finest, diffusers from the coarsest
            ours = f"{side}.{blocks}_blocks.{i if side == 'encoder' else levels - 1 - i}"
            for j in range(layers + (side == "decoder")):
                layout.add(f"{side}.{blocks}.{i}.block.{j}", f"{ours}.resnets.{j}", _VAE_RESNET)
                _vae_attention(layout, f"{side}.{blocks}.{i}.attn.{j}", f"{ours}.attentions.{j}")
            layout.add(f"{side}.{blocks}.{i}.{blocks}sample.conv", f"{ours}.{blocks}samplers.0.conv")
        layout.add(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0", _VAE_RESNET)
        layout.add(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1", _VAE_RESNET)
        _vae_attention(layout, f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0")
        layout.add(f"{side}.norm_out", f"{side}.conv_norm_out")
        # AutoencoderKL's own conv_in and conv_out are named as the released ones
        layout.add(f"{side}.conv_in", f"{side}.conv_in")
        layout.add(f"{side}.conv_out", f"{side}.conv_out")
    layout.config = {
        "in_channels": _shape(shapes, "encoder.conv_in.weight")[1],
        "out_channels": _shape(shapes, "decoder.conv_out.weight")[0],
        "latent_channels": latent,
        "block_out_channels": tuple(_shape(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)),
        "layers_per_block": layers,
        "down_block_types": tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)),
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in shapes,
    }
    return layout


def _vae_attention(layout: Layout, released: str, ours: str) -> None:
    layout.add(released, ours, _VAE_ATTENTION)
    layout.flat |= {f"{ours}.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}


def _shape(shapes: Shapes, key: str) -> Sequence[int]:
    if key not in shapes:
        raise CheckpointError(f"key {key} of the Latent Diffusion layout is missing; is this the right file?")
    return shapes[key]


def _depth(shapes: Shapes, attention: str) -> int:
    return children(shapes, f"{attention}.transformer_blocks")
