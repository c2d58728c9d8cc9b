"""Models of the shapes of public ones, without weights: for memory plans before anything is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.diffbir import DiffBIR
from restoration.base_models.flow_flux import FluxControl
from restoration.base_models.flow_sd3 import SD3Control
from restoration.base_models.interface import NEGATIVE
from restoration.base_models.latent import LatentModel
from restoration.base_models.networks.released import without_hint
from restoration.base_models.pixel_control import PixelControl

# Architectures of public models in diffusers' configs, where they differ from its defaults.
_SD21: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}
_SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD3: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_FLUX: dict[str, Any] = {"in_channels": 64, "guidance_embeds": True}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
_VAE16: dict[str, Any] = _VAE | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "shift_factor": 0.06,
}


def _texts(tokens: int, width: int, pooled: int = 0, negative: bool = True) -> dict[str, torch.Tensor]:
    one = {"text": torch.empty(1, tokens, width)} | ({"pooled": torch.empty(1, pooled)} if pooled else {})
    return one | ({NEGATIVE + name: value for name, value in one.items()} if negative else {})


def _sd21() -> LatentModel:
    unet = UNet2DConditionModel(sample_size=64, **_SD21)
    control = without_hint(ControlNetModel(in_channels=8, **_SD21))
    text = _texts(77, 1024)
    return DiffBIR(AutoencoderKL(**_VAE), unet, control, _cleaner(), text["text"], text[NEGATIVE + "text"])


def _sdxl() -> LatentModel:
    up = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    unet = UNet2DConditionModel(sample_size=128, up_block_types=up, **_SDXL)
    return PixelControl(AutoencoderKL(**_VAE), unet, ControlNetModel(**_SDXL), _cleaner(), _texts(77, 2048, 1280))


def _sd3() -> LatentModel:
    control = SD3ControlNetModel(num_layers=6, **_SD3)
    return SD3Control(
        AutoencoderKL(**_VAE16),
        SD3Transformer2DModel(num_layers=24, **_SD3),
        control,
        _cleaner(),
        _texts(333, 4096, 2048),
    )


def _flux() -> LatentModel:
    control = FluxControlNetModel(num_layers=5, num_single_layers=10, **_FLUX)
    text = _texts(512, 4096, 768, negative=False)
    return FluxControl(AutoencoderKL(**_VAE16), FluxTransformer2DModel(**_FLUX), control, _cleaner(), text)


def _cleaner() -> Restormer:
    return Restormer(RestormerConfig())


STOCK: dict[str, Callable[[], LatentModel]] = {"sd21": _sd21, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux}


def stock(name: str) -> LatentModel:
    """A model of the shapes of Stable Diffusion 2.1 (DiffBIR), XL, 3 or Flux.1 dev with a ControlNet, without weights.

    ControlNets: DiffBIR's; diffusers' own of SDXL; 6 blocks for SD 3; 5 and 10 blocks for Flux. Cleaner: Restormer.

    Raises:
        ValueError: another name.
    """
    if name not in STOCK:
        raise ValueError(f"stock shapes {name!r}: choose {', '.join(STOCK)}")
    with torch.device("meta"):
        return STOCK[name]()
