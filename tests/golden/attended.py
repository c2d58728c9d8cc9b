"""Golden files of networks with second attentions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from restoration.base_models.attended import Contexts, skips_of
from restoration.base_models.pixel_control import HEADS_OF_SFT, KINDS, attended_network
from tests.golden.case import Golden, Outputs
from tests.golden.networks import SECOND_ATTENTIONS


def _network(golden: Golden, part: str, name: str) -> Any:
    state = {k: v for k, v in golden.state(part).items() if not HEADS_OF_SFT.search(k)}
    return attended_network(KINDS[part], golden.config[part], state, name, golden.name)


def _outputs(golden: Golden, unet: Any, skips: Sequence[Tensor], middle: Tensor, other: Any) -> Outputs:
    """`other`: scaled residuals -> what the UNet's second attentions look at."""
    x, t, words = (golden.inputs[k] for k in ("x_t", "t", "prompt"))
    # the scale of the residuals themselves and of the first output stands in the notes only
    said = re.search(r"residuals at conditioning scale ([\d.]*\d)", str(golden.meta.get("notes")))
    usual = float(said[1]) if said else 1.0
    ours: Outputs = {f"down_{i}": s * usual for i, s in enumerate(skips)} | {"mid": middle * usual}
    for name in golden.outputs:
        if match := re.fullmatch(r"model_output(?:_scale([\d.]+))?", name):
            scale = float(match[1] or usual)
            scaled = [s * scale for s in skips]
            ours[name] = unet(
                x,
                t,
                Contexts(words, other(scaled), golden.inputs.get("prompt_low")),
                down_block_additional_residuals=scaled,
                mid_block_additional_residual=middle * scale,
                return_dict=False,
            )[0]
    return ours


@torch.no_grad()
def seesr(golden: Golden) -> Outputs:
    unet, controlnet = (_network(golden, part, SECOND_ATTENTIONS["seesr"]) for part in ("unet", "controlnet"))
    x, t, words, image, seen = (golden.inputs[k] for k in ("x_t", "t", "prompt", "image01", "image_embeds"))
    skips, middle = controlnet(x, t, Contexts(words, seen), image, return_dict=False)
    return _outputs(golden, unet, skips, middle, lambda _: seen)


@torch.no_grad()
def pasd(golden: Golden) -> Outputs:
    unet = _network(golden, "unet", SECOND_ATTENTIONS["pasd"])
    controlnet = _network(golden, "controlnet", SECOND_ATTENTIONS["pasd"])
    x, t, words, image = (golden.inputs[k] for k in ("x_t", "t", "prompt", "image01"))
    context = Contexts(words, low=golden.inputs.get("prompt_low"))
    skips, middle = controlnet(x, t, context, image, return_dict=False)
    ours = _outputs(golden, unet, skips, middle, skips_of)
    # heads of SFT: on the hint after each halving, and on every residual
    state, prefix = golden.state("controlnet"), "controlnet_cond_embedding.to_rgbs"

    def head(name: str, features: Tensor) -> Tensor:
        return F.conv2d(features, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    embedding = controlnet.controlnet_cond_embedding
    hint = F.silu(embedding.conv_in(image))
    for i, block in enumerate(embedding.blocks):
        hint = F.silu(block(hint))
        if i % 2:
            ours[f"rgb_{i // 2}"] = head(f"{prefix}.{i // 2}", hint)
    if "conv_degradation_mid.0.weight" in state:
        ours |= {f"degradation_{i}": head(f"conv_degradation.{i}.0", skip) for i, skip in enumerate(skips)}
        ours["degradation_mid"] = head("conv_degradation_mid.0", middle)
    return ours
