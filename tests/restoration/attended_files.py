"""Released networks with second attentions (PASD, XPSR, SeeSR) and PiSA-SR's in small: two levels of one layer each.

Golden files hold four levels, against their authors' code; here are the same kinds of blocks in a few milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from restoration.base_models.pixel_control import HEADS_OF_SFT
from restoration.checkpoints import empty
from tests.golden.case import Golden, recipe_tensor

Parts = dict[str, tuple[dict[str, Any], dict[str, Tensor]]]
IMAGE_WIDTH = 512
COMMON: dict[str, Any] = {
    "in_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}
UNET: dict[str, Any] = {**COMMON, "out_channels": 4, "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
CONTROLNET: dict[str, Any] = {**COMMON, "conditioning_embedding_out_channels": [4, 4, 8, 8]}
KINDS = {"unet": UNet2DConditionModel, "controlnet": ControlNetModel}
SKIPS = {"up_blocks.0": (32, 16), "up_blocks.1": (16, 16)}  # widths of the ControlNet's residuals there
ALL = ("down_blocks.0", "mid_block", "up_blocks.1")
OWN: dict[str, dict[str, Any]] = {
    "pasd": {"attention_head_dim": 2, "use_linear_projection": False},
    "xpsr": {"attention_head_dim": 2, "use_linear_projection": False},
    "seesr": {"attention_head_dim": [2, 4], "use_linear_projection": True, "use_image_cross_attention": True},
}


def attended(case: Golden) -> Parts:
    """Configuration and weights, in the released naming, of "unet" and "controlnet" of the family of `case`."""
    name = case.name
    unet, controlnet = UNET | OWN[name], CONTROLNET | OWN[name]
    if name == "seesr":
        seconds = {block: (IMAGE_WIDTH,) * 2 for block in ALL}
        shapes = {p: with_second(p, c, "image_attentions", seconds) for p, c in _both(unet, controlnet)}
    else:
        shapes = {
            "unet": with_second("unet", unet, "pixel_attentions", SKIPS),
            "controlnet": with_second("controlnet", controlnet, "", {}, low=name == "xpsr"),
        }
    shapes["controlnet"] |= {k: v for k, v in case.keys["controlnet"].items() if HEADS_OF_SFT.search(k)}
    return {p: (c, {k: recipe_tensor(k, v) for k, v in shapes[p].items()}) for p, c in _both(unet, controlnet)}


def _both(unet: dict[str, Any], controlnet: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [("unet", unet), ("controlnet", controlnet)]


def with_second(
    part: str, config: dict[str, Any], name: str, widths: dict[str, Sequence[int]], low: bool = False
) -> dict[str, list[int]]:
    """Keys and shapes: `widths` of what the attentions `name` of a block look at, each beside one to the text.

    An UpBlock2D among `widths` has those alone. With `low` there are XPSR's to the quality text, too.
    """
    types = config.get("up_block_types", [])
    bare = [f"up_blocks.{i}" for i, kind in enumerate(types) if kind == "UpBlock2D" and f"up_blocks.{i}" in widths]
    built = dict(config)
    if bare:
        built["up_block_types"] = ["CrossAttnUpBlock2D"] * len(types)
    kind = KINDS[part]
    network = empty(lambda: kind.from_config(built))
    shapes: dict[str, list[int]] = {}
    for key, value in network.state_dict().items():
        found = re.fullmatch(r"(\w+\.\d+|mid_block)\.attentions\.(\d+)\.(.*)", key)
        if found is None:
            shapes[key] = list(value.shape)
            continue
        block, index, rest = found.groups()
        seen = rest.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
        if block not in bare:
            shapes[key] = list(value.shape)
        others = {name: widths[block][int(index)]} if block in widths else {}
        if low:
            others |= {"attentions_lowlevel": config["cross_attention_dim"]}
            others |= {"attentions_connect": config["block_out_channels"][1 if block == "mid_block" else 0]}
        for other, width in others.items():
            shapes[f"{block}.{other}.{index}.{rest}"] = [len(value), width] if seen else list(value.shape)
    return shapes


def pisa(case: Golden, rank: int = 4) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Configuration and weights of the UNet, and what PiSA-SR's file holds: updates of the layers that `case` lists."""
    config = UNET | {"attention_head_dim": [2, 4], "use_linear_projection": True}
    network = empty(lambda: UNet2DConditionModel.from_config(config))
    weights = {k: recipe_tensor(k, list(v.shape)) for k, v in network.state_dict().items()}
    content: dict[str, Any] = {f"lora_rank_unet_{kind}": rank for kind in ("pix", "sem")}
    updates: dict[str, Tensor] = {}
    for name, listed in case.meta["module_lists"].items():
        kinds = {kind_of(module) for module in listed}
        modules = [k.removesuffix(".weight") for k in weights if k.endswith(".weight")]
        content[name] = [module for module in modules if kind_of(module) in kinds]
        side, _, kind = name.removeprefix("unet_lora_").split("_")
        for module in content[name]:
            out, into, *kernel = weights[f"{module}.weight"].shape
            for matrix, shape in (("A", [rank, into, *kernel]), ("B", [out, rank, *[1] * len(kernel)])):
                key = f"{module}.lora_{matrix}.default_{side}_{kind}.weight"
                updates[key] = recipe_tensor(key, shape) * (0.3 if matrix == "B" else 1.0)
    return config, weights, content | {"state_dict_unet": updates}


def kind_of(module: str) -> str:
    """A module's or key's name without its numbers."""
    return re.sub(r"\d+", "#", module)


def another(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A UNet of another training, without second attentions."""
    return {k: v * 0.9 for k, v in state.items() if ".image_attentions." not in k}
