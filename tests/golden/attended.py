"""Golden files of networks with second attentions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from restoration.base_models.networks.attended import Contexts, skips_of
from restoration.base_models.networks.control_heads import ControlHeads
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
    heads = _heads(golden, controlnet)
    with heads.watch(controlnet) as seen:
        skips, middle = controlnet(x, t, context, image, return_dict=False)
    ours = _outputs(golden, unet, skips, middle, skips_of)
    pictures, latents = heads.read(seen)
    ours |= {f"rgb_{i}": picture for i, picture in enumerate(pictures)}
    ours |= {f"degradation_{i}": latent for i, latent in enumerate(latents[:-1])}
    return ours | ({"degradation_mid": latents[-1]} if latents else {})


def _heads(golden: Golden, controlnet: Any) -> ControlHeads:
    state = golden.state("controlnet")
    middle = state.get("conv_degradation_mid.0.weight")
    heads = ControlHeads(controlnet, 0 if middle is None else len(middle))
    places = {f"controlnet_cond_embedding.to_rgbs.{i}": head for i, head in enumerate(heads.rgbs)}
    if middle is not None:
        names = [f"conv_degradation.{i}.0" for i in range(len(heads.latents) - 1)]
        places |= dict(zip([*names, "conv_degradation_mid.0"], heads.latents, strict=True))
    for name, head in places.items():
        head.load_state_dict({kind: state[f"{name}.{kind}"] for kind in ("weight", "bias")})
    return heads
