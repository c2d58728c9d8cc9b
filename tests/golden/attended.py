"""Golden files of networks with second attentions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from restoration.base_models.attended import Contexts, build_attended, released_to_attended, skips_of
from restoration.checkpoints import load_strict
from tests.golden.case import Golden, Outputs


def _network(golden: Golden, part: str, name: str) -> Any:
    kind = UNet2DConditionModel if part == "unet" else ControlNetModel
    state = {k: v for k, v in golden.state(part).items() if ".to_rgbs." not in k}  # heads of SFT
    network = build_attended(kind, golden.config[part], {k: tuple(v.shape) for k, v in state.items()}, name)
    load_strict(network, {released_to_attended(k, name): v for k, v in state.items()}, golden.name)
    return network.eval()


def _outputs(golden: Golden, unet: Any, skips: Sequence[Tensor], middle: Tensor, other: Any) -> Outputs:
    """`other`: scaled residuals -> what the UNet's second attentions look at."""
    x, t, words = (golden.inputs[k] for k in ("x_t", "t", "prompt"))
    ours: Outputs = {f"down_{i}": s for i, s in enumerate(skips)} | {"mid": middle}
    for name in golden.outputs:
        if match := re.fullmatch(r"model_output(?:_scale([\d.]+))?", name):
            scale = float(match[1] or 1)
            scaled = [s * scale for s in skips]
            ours[name] = unet(
                x,
                t,
                Contexts(words, other(scaled)),
                down_block_additional_residuals=scaled,
                mid_block_additional_residual=middle * scale,
                return_dict=False,
            )[0]
    return ours


@torch.no_grad()
def seesr(golden: Golden) -> Outputs:
    unet, controlnet = (_network(golden, part, "image_attentions") for part in ("unet", "controlnet"))
    x, t, words, image, seen = (golden.inputs[k] for k in ("x_t", "t", "prompt", "image01", "image_embeds"))
    skips, middle = controlnet(x, t, Contexts(words, seen), image, return_dict=False)
    return _outputs(golden, unet, skips, middle, lambda _: seen)


@torch.no_grad()
def pasd(golden: Golden) -> Outputs:
    unet = _network(golden, "unet", "pixel_attentions")
    controlnet = _network(golden, "controlnet", "pixel_attentions")
    x, t, words, image = (golden.inputs[k] for k in ("x_t", "t", "prompt", "image01"))
    skips, middle = controlnet(x, t, Contexts(words, ()), image, return_dict=False)
    ours = _outputs(golden, unet, skips, middle, skips_of)
    # the heads read the hint after each halving
    state, prefix = golden.state("controlnet"), "controlnet_cond_embedding.to_rgbs"
    embedding = controlnet.controlnet_cond_embedding
    hint = F.silu(embedding.conv_in(image))
    for i, block in enumerate(embedding.blocks):
        hint = F.silu(block(hint))
        if i % 2:
            head = [state[f"{prefix}.{i // 2}.{what}"] for what in ("weight", "bias")]
            ours[f"rgb_{i // 2}"] = F.conv2d(hint, *head, padding=1)
    return ours
