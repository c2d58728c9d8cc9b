"""Golden files of networks, run through the loaders for the released key layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from restoration.backbones.cleaners import cleaner_from_released, empty_cleaner
from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.backbones.snr import SNRAware, box_blur, snr_map, snr_ratio
from restoration.base_models.diffbir import DiffBIR, DiffBIRSettings, Policy
from restoration.base_models.interface import Condition
from restoration.base_models.latent import decode_latents, encode_images
from restoration.base_models.networks import text
from restoration.base_models.networks.attended import build_attended, config_from_shapes, released_to_attended
from restoration.base_models.networks.faithdiff_networks import (
    empty_faithdiff,
    faithdiff_to_released,
    released_to_faithdiff,
)
from restoration.base_models.networks.released import (
    controlnet_from_released,
    empty_controlnet,
    empty_unet,
    empty_vae,
    unet_from_released,
    vae_from_released,
)
from restoration.base_models.pixel_control import HEADS_OF_SFT
from restoration.checkpoints import check_fit, empty
from restoration.ldm_layout import UNET_PREFIX, VAE_PREFIX, controlnet_layout, part, unet_layout, vae_layout
from restoration.transition import Prediction
from tests.golden.case import Golden, Outputs

SECOND_ATTENTIONS = {
    "pasd": "pixel_attentions",
    "xpsr": "pixel_attentions",
    "seesr": "image_attentions",
    "rap": "image_attentions",
}
"""Beginning of a golden name -> how the released files name the second attentions."""

PREDICTIONS: dict[str, Prediction] = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def heads_of(config: dict[str, Any]) -> dict[str, int | None]:
    """What a checkpoint does not say about its attention: width of a head, or number of heads."""
    width = config.get("num_head_channels", -1)
    return (
        {"head_channels": width, "heads": None}
        if width != -1
        else {"head_channels": None, "heads": config["num_heads"]}
    )


def policy_of(golden: Golden) -> Policy:
    unet = unet_from_released(part(golden.state("unet"), UNET_PREFIX), golden.name, **heads_of(golden.config["unet"]))
    controlnet = controlnet_from_released(
        golden.state("controlnet"), golden.name, **heads_of(golden.config["controlnet"])
    )
    return Policy(unet, controlnet).eval()


@torch.no_grad()
def diffbir(golden: Golden) -> Outputs:
    policy = policy_of(golden)
    x_t, t, latent, words = (golden.inputs[k] for k in ("x_t", "t", "c_img", "c_txt"))
    ours = {f"control_{i}": c for i, c in enumerate(policy.controls(x_t, t, latent, words))}
    for name in golden.outputs:
        if name == "model_output_no_control":
            ours[name] = policy(x_t, t, latent, words, control_scale=0.0)
        elif match := re.fullmatch(r"model_output(?:_scale([\d.]+))?", name):
            ours[name] = policy(x_t, t, latent, words, control_scale=float(match[1] or 1))
    return ours


@torch.no_grad()
def diffbir_plosses(golden: Golden) -> Outputs:
    policy = policy_of(golden)
    # sft_loss needs no autoencoder and no cleaner, but a DiffBIR has them
    latents = policy.unet.config.in_channels
    vae = AutoencoderKL(latent_channels=latents, block_out_channels=(8,), norm_num_groups=8)
    cleaner = Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1))
    x, noise, t, words, c_img = (golden.inputs[k] for k in ("x_start", "noise", "t", "c_txt", "c_img"))
    condition = Condition(clean=torch.zeros(x.shape[0], 3, 8, 8), latent=c_img, text=words)
    ours: Outputs = {}
    for name, prediction in PREDICTIONS.items():
        settings = DiffBIRSettings(prediction=prediction, zero_terminal_snr=name == "v")
        model = DiffBIR(vae, policy.unet, policy.controlnet, cleaner, words[:1], settings=settings)
        ours[f"loss_{name}"] = model.sft_loss(x, condition, t, noise).mean().reshape(1)
        ours[f"x_noisy_{name}"], ours[f"target_{name}"] = model.add_noise(x, t, noise)
    return ours


@torch.no_grad()
def diffbir_vae(golden: Golden) -> Outputs:
    scale = golden.config.get("latent_scale_factor", 0.18215)
    vae = vae_from_released(part(golden.state("vae"), VAE_PREFIX), golden.name, scale)
    image, z = golden.inputs["image01"], golden.inputs["z"]
    posterior = vae.encode(image * 2 - 1).latent_dist
    return {
        "c_img": encode_images(vae, image),
        "logvar": posterior.logvar,
        "std": posterior.std,
        "decoded": decode_latents(vae, z),
    }


@torch.no_grad()
def diffbir_cliptext(golden: Golden) -> Outputs:
    clip = golden.config["clip"]
    encoder = text.from_released(
        part(golden.state("clip"), text.TEXT_PREFIX),
        golden.name,
        heads=clip["text_cfg"]["heads"],
        skip_last=int(clip.get("layer", "penultimate") == "penultimate"),
    )
    return {"c_txt": encoder(golden.inputs["tokens"])}


@torch.no_grad()
def restormer(golden: Golden) -> Outputs:
    network = cleaner_from_released(golden.state("net"), golden.name)
    return {"y": network(golden.inputs["x"])}


@torch.no_grad()
def snr(golden: Golden) -> Outputs:
    network = cleaner_from_released(golden.state("net"), golden.name, key_width=golden.config["transformer"]["d_k"])
    assert isinstance(network, SNRAware)
    kept: list[torch.Tensor] = []
    hook = network.transformer.register_forward_hook(lambda _, __, tokens: kept.append(tokens))
    x = golden.inputs["x"]
    ours = {"y": network(x, golden.inputs["mask"]), "y_mask2": network(x, golden.inputs["mask2"])}
    hook.remove()
    shown = golden.outputs["transformer_tokens_mask2"].shape[1]
    return ours | {"transformer_tokens_mask2": kept[-1][:, :shown]}


def snr_mask(golden: Golden) -> Outputs:
    ours: Outputs = {}
    for name, x in golden.inputs.items():
        tag = name.removeprefix("x")
        blurred = box_blur(x)
        ours |= {f"nf{tag}": blurred, f"snr_raw{tag}": snr_ratio(x, blurred), f"mask{tag}": snr_map(x)}
    return ours


def full_keys(name: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """Map a full-size released layout onto our network without weights; a note, or None for an unknown one.

    Raises:
        CheckpointError: a key or shape does not fit.
    """
    if name.startswith("diffbir_unet"):
        inner = part(shapes, UNET_PREFIX)
        layout = unet_layout(inner)
        check_fit(empty_unet(layout), layout.shapes(inner), name, layout.released)
    elif name.startswith("diffbir_controlnet"):
        inner = shapes
        layout = controlnet_layout(inner)
        check_fit(empty_controlnet(layout), layout.shapes(inner), name, layout.released)
    elif name.startswith("diffbir_vae"):
        inner = part(shapes, VAE_PREFIX)
        layout = vae_layout(inner)
        check_fit(empty_vae(layout), layout.shapes(inner), name, layout.released)
    elif name.startswith("diffbir_cliptext"):
        inner = part(shapes, text.TEXT_PREFIX)
        config = text.config_from_shapes(inner)
        used = {k: inner[k] for k in text.used_keys(list(inner), config)}
        check_fit(empty(lambda: text.TextEncoder(config)), used, name)
        return f"{len(used)} keys mapped, {len(shapes) - len(used)} not needed for the embedding"
    elif name.startswith("faithdiff"):
        inner = shapes
        ours = {released_to_faithdiff(k): v for k, v in inner.items()}
        check_fit(empty_faithdiff(inner, name), ours, name, faithdiff_to_released)
    elif name.startswith(("restormer", "snr")):
        inner = shapes
        check_fit(empty_cleaner(inner, name), inner, Path(name))
    elif second := next((n for family, n in SECOND_ATTENTIONS.items() if name.startswith(f"{family}_")), None):
        inner = {k: v for k, v in shapes.items() if not HEADS_OF_SFT.search(k)}
        kind = ControlNetModel if "controlnet" in name else UNet2DConditionModel
        network = build_attended(kind, config_from_shapes(inner), inner, second)
        check_fit(network, {released_to_attended(k, second): v for k, v in inner.items()}, name)
        heads = len(shapes) - len(inner)
        return f"{len(inner)} keys mapped" + (f", {heads} of heads that only SFT uses" if heads else "")
    else:
        return None
    if len(inner) != len(shapes):
        raise ValueError(f"{len(shapes) - len(inner)} keys lie outside the part")
    return f"{len(inner)} keys mapped"
