"""Stock diffusers UNets and ControlNets with a second attention after each text attention (SeeSR, RAP, PASD, XPSR).

What the second attention looks at travels with the text as the argument `encoder_hidden_states`, so that gradient
checkpointing recomputes with what the forward saw, and a batch is split, repeated or guided as a whole.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from restoration.checkpoints import Shapes, children, empty

Network = TypeVar("Network", UNet2DConditionModel, ControlNetModel)

LOW, CONNECT = "attentions_lowlevel", "attentions_connect"  # as released files name XPSR's
BARE = "UpBlock2D"  # a block without text attentions


class Contexts(NamedTuple):
    """What the attentions of a network look at.

    Attributes:
        text: [B, tokens, width].
        other: of the second attentions: one [B, tokens, width] for all, or one for each in the network's order.
        low: a second text [B, tokens, width], of XPSR's attentions to the picture's quality.
    """

    text: Tensor
    other: Tensor | Sequence[Tensor] = ()
    low: Tensor | None = None


class Attended(nn.Module):
    """In the place of a block's text attention; parts that a block doesn't have are None.

    Attributes:
        first: to the text.
        low, connect: of the block's input to the low-level text, and of the first's result to that (XPSR).
        second: to the other context, at `place` if there are several.
    """

    def __init__(
        self,
        first: Transformer2DModel | None,
        low: Transformer2DModel | None,
        connect: Transformer2DModel | None,
        second: Transformer2DModel | None,
        place: int,
    ) -> None:
        super().__init__()
        self.first, self.low, self.connect, self.second, self.place = first, low, connect, second, place

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Contexts, return_dict: bool = True, **others: Any
    ) -> tuple[Tensor]:
        text, other, low = encoder_hidden_states
        before = hidden_states
        if self.first is not None:
            hidden_states = self.first(hidden_states, encoder_hidden_states=text, return_dict=False, **others)[0]
        if self.low is not None and self.connect is not None:
            quality = self.low(before, encoder_hidden_states=low, return_dict=False)[0]
            hidden_states = self.connect(hidden_states, encoder_hidden_states=tokens(quality), return_dict=False)[0]
        if self.second is not None:
            context = other if isinstance(other, Tensor) else other[self.place]
            hidden_states = self.second(hidden_states, encoder_hidden_states=context, return_dict=False)[0]
        return (hidden_states,)


def build_attended(kind: type[Network], config: Mapping[str, Any], shapes: Shapes, name: str) -> Network:
    """The network of a released diffusers folder, without weights.

    Args:
        config: its config.json; keys that the stock network doesn't know are left out.
        shapes: of its weights, in the released naming.
        name: of the second attentions there, such as "image_attentions".
    """
    known = {k: v for k, v in config.items() if k in inspect.signature(kind.__init__).parameters}
    bare = set()
    for index, block in enumerate(known.get("up_block_types", ())):
        if block == BARE and any(k.startswith(f"up_blocks.{index}.{name}.") for k in shapes):
            # only a block with attentions calls one after each resnet; its text attentions are dropped below
            bare.add(f"up_blocks.{index}")
            types = list(known["up_block_types"])
            types[index] = "CrossAttnUpBlock2D"
            known["up_block_types"] = tuple(types)

    def made() -> Network:
        network = kind(**known)
        place = 0
        for path, block in _blocks(network):
            attended = []
            for index, first in enumerate(block.attentions):
                low, connect, second = (
                    _another(first, shapes.get(f"{path}.{kept}.{index}.transformer_blocks.0.attn2.to_k.weight"))
                    for kept in (LOW, CONNECT, name)
                )
                attended.append(Attended(None if path in bare else first, low, connect, second, place))
                place += second is not None
            block.attentions = nn.ModuleList(attended)
        return network

    return empty(made)


def config_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """What of a config.json the weights tell, in the released naming; not the number of heads, which no shape does.

    For SDXL's pooled text and sizes, the width of all together is told, but not that of each size
    (`addition_time_embed_dim`).

    Raises:
        KeyError: a key that every such network has is absent.
    """
    levels = range(children(shapes, "down_blocks"))
    layers = tuple(children(shapes, f"down_blocks.{i}.resnets") for i in levels)
    middle = "mid_block.attentions.0"

    def types(side: str) -> tuple[str, ...]:
        kinds = {True: f"CrossAttn{side.capitalize()}Block2D", False: f"{side.capitalize()}Block2D"}
        blocks = (f"{side}_blocks.{i}.attentions." for i in range(children(shapes, f"{side}_blocks")))
        return tuple(kinds[any(k.startswith(block) for k in shapes)] for block in blocks)

    def depth(level: int) -> int:
        # the stock network gives the middle block the last level's depth
        places = [f"down_blocks.{level}.attentions.0"] + [middle] * (level == levels[-1])
        return next((d for d in (children(shapes, f"{p}.transformer_blocks") for p in places) if d), 1)

    config: dict[str, Any] = {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": tuple(shapes[f"down_blocks.{i}.resnets.0.conv2.weight"][0] for i in levels),
        "layers_per_block": layers[0] if len(set(layers)) == 1 else layers,
        "down_block_types": types("down"),
        "transformer_layers_per_block": tuple(map(depth, levels)),
        "cross_attention_dim": shapes[f"{middle}.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(shapes[f"{middle}.proj_in.weight"]) == 2,
    }
    if children(shapes, "up_blocks"):
        config |= {"up_block_types": types("up"), "out_channels": shapes["conv_out.weight"][0]}
    if added := shapes.get("add_embedding.linear_1.weight"):
        config |= {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": added[1]}
    return config


def released_to_attended(key: str, name: str) -> str:
    """A key of the released naming in that of `build_attended`'s network."""
    for released, ours in (("attentions", "first"), (LOW, "low"), (CONNECT, "connect"), (name, "second")):
        if found := re.match(rf"(.*blocks?(?:\.\d+)?)\.{released}\.(\d+)\.(.*)", key):
            return f"{found[1]}.attentions.{found[2]}.{ours}.{found[3]}"
    return key


def attended_to_released(key: str, name: str) -> str:
    """The inverse of `released_to_attended`."""
    for released, ours in (("attentions", "first"), (LOW, "low"), (CONNECT, "connect"), (name, "second")):
        if found := re.fullmatch(rf"(.*blocks?(?:\.\d+)?)\.attentions\.(\d+)\.{ours}\.(.*)", key):
            return f"{found[1]}.{released}.{found[2]}.{found[3]}"
    return key


def released_config(network: Any) -> dict[str, Any]:
    """The config.json that belongs to the released naming of a network of `build_attended`."""
    config: dict[str, Any] = json.loads(network.to_json_string())
    if "up_block_types" in config:
        kinds = zip(config["up_block_types"], network.up_blocks, strict=True)
        config["up_block_types"] = [BARE if _is_bare(block) else kind for kind, block in kinds]
    return config


def skips_of(residuals: Sequence[Tensor]) -> list[Tensor]:
    """A ControlNet's residuals [B, C, h, w] as contexts [B, h w, C] of the up blocks, which take the last one first."""
    return [tokens(r) for r in reversed(residuals)]


def tokens(features: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h w, C]."""
    return features.flatten(2).transpose(1, 2)


def _blocks(network: nn.Module) -> Iterator[tuple[str, Any]]:
    for side in ("down_blocks", "mid_block", "up_blocks"):
        part = getattr(network, side, None)
        listed = enumerate(part) if isinstance(part, nn.ModuleList) else [("", part)]
        for index, block in listed:
            if getattr(block, "attentions", None):
                yield f"{side}.{index}".rstrip("."), block


def _is_bare(block: Any) -> bool:
    return any(isinstance(a, Attended) and a.first is None for a in getattr(block, "attentions", ()))


def _another(first: Transformer2DModel, key_shape: Sequence[int] | None) -> Transformer2DModel | None:
    """Like a block's text attention, but with keys of another width; None without such weights."""
    if key_shape is None:
        return None
    c = first.config
    return Transformer2DModel(
        c.num_attention_heads,
        c.attention_head_dim,
        in_channels=c.in_channels,
        num_layers=c.num_layers,
        cross_attention_dim=key_shape[1],
        norm_num_groups=c.norm_num_groups,
        use_linear_projection=c.use_linear_projection,
    )
