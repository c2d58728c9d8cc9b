"""Every base model, made from tiny files in its released layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

from restoration.base_models.flow_flux import FluxControl, FluxControlSettings
from restoration.base_models.flow_sd3 import SD3Control
from restoration.base_models.interface import BaseModel
from restoration.base_models.pasd import PASD
from restoration.base_models.pixel_control import PixelControl
from restoration.base_models.seesr import RAP, SeeSR
from restoration.base_models.xpsr import XPSR
from tests.restoration import released_folders as files

CONTROLNET = {
    "block_out_channels": (16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}


def controlnet(folder: Path) -> BaseModel:
    base = files.write_pipeline(folder / "base")
    torch.manual_seed(4)
    up = ("UpBlock2D", "CrossAttnUpBlock2D")
    UNet2DConditionModel(up_block_types=up, **CONTROLNET).save_pretrained(base / "unet")
    control = ControlNetModel(conditioning_embedding_out_channels=(4, 4, 8, 8), **CONTROLNET)
    files.randomise_zeros(control)
    control.save_pretrained(folder / "control")
    return PixelControl.from_released(base, folder / "control", files.write_cleaner(folder / "cleaner.pth"))


def pasd(folder: Path) -> BaseModel:
    base = files.write_pipeline(folder / "base")
    checkpoint = files.write_golden_networks("pasd", folder / "checkpoint")
    return PASD.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"))


def xpsr(folder: Path) -> BaseModel:
    base = files.write_pipeline(folder / "base")
    checkpoint = files.write_golden_networks("xpsr", folder / "checkpoint")
    embeddings = files.write_embeddings(folder / "e.safetensors", low=(1, 9, 24), negative_low=(1, 9, 24))
    return XPSR.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"), embeddings=embeddings)


def seesr(folder: Path) -> BaseModel:
    base = files.write_pipeline(folder / "base")
    checkpoint = files.write_golden_networks("seesr", folder / "checkpoint")
    embeddings = files.write_embeddings(folder / "e.safetensors", image=(1, 5, 512))
    return SeeSR.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"), embeddings=embeddings)


def rap(folder: Path) -> BaseModel:
    base = files.write_pipeline(folder / "base")
    checkpoint = files.write_golden_networks("seesr", folder / "checkpoint")
    case = files.golden("seesr")
    own = {k: v * 0.9 for k, v in case.state("unet").items() if ".image_attentions." not in k}
    files.write_network(folder / "unet", case.config["unet"], own)
    embeddings = files.write_embeddings(folder / "e.safetensors", image=(1, 5, 512))
    return RAP.from_released(
        base, checkpoint, files.write_cleaner(folder / "cleaner.pth"), embeddings=embeddings, unet=folder / "unet"
    )


SD3 = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 20,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 12,
}
FLUX = {
    "in_channels": 16,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}


def write_sd3(folder: Path, transformer: Any = None, controlnet: Any = None) -> tuple[Path, Path]:
    """Folders of the base and of the ControlNet; arguments change their configurations."""
    files.write_flow_vae(folder / "base" / "vae")
    torch.manual_seed(5)
    SD3Transformer2DModel(num_layers=4, **SD3 | (transformer or {})).save_pretrained(folder / "base" / "transformer")
    control = SD3ControlNetModel(num_layers=2, **SD3 | (controlnet or {}))
    files.randomise_zeros(control)
    control.save_pretrained(folder / "control")
    return folder / "base", folder / "control"


def write_flux(folder: Path, transformer: Any = None, controlnet: Any = None) -> tuple[Path, Path]:
    """As `write_sd3`."""
    files.write_flow_vae(folder / "base" / "vae")
    torch.manual_seed(6)
    own = {"num_layers": 2, "num_single_layers": 2, **FLUX}
    FluxTransformer2DModel(**own | (transformer or {})).save_pretrained(folder / "base" / "transformer")
    control = FluxControlNetModel(**own | {"num_layers": 1, "num_single_layers": 1} | (controlnet or {}))
    files.randomise_zeros(control)
    control.save_pretrained(folder / "control")
    return folder / "base", folder / "control"


def flow_text(file: Path, negative: bool = True) -> Path:
    shapes: dict[str, tuple[int, ...]] = {"text": (1, 7, 20), "pooled": (1, 12)}
    return files.write_embeddings(
        file, **shapes, **({f"negative_{name}": shape for name, shape in shapes.items()} if negative else {})
    )


def sd3(folder: Path) -> BaseModel:
    base, control = write_sd3(folder)
    embeddings = flow_text(folder / "e.safetensors")
    return SD3Control.from_released(base, control, files.write_cleaner(folder / "cleaner.pth"), embeddings=embeddings)


def flux(folder: Path) -> BaseModel:
    base, control = write_flux(folder, {"guidance_embeds": True}, {"guidance_embeds": True, "num_mode": 3})
    embeddings = flow_text(folder / "e.safetensors", negative=False)
    settings = FluxControlSettings(control_mode=2)
    return FluxControl.from_released(
        base, control, files.write_cleaner(folder / "cleaner.pth"), embeddings=embeddings, settings=settings
    )


MODELS: dict[str, Callable[[Path], BaseModel]] = {
    "controlnet": controlnet,
    "pasd": pasd,
    "xpsr": xpsr,
    "seesr": seesr,
    "rap": rap,
    "sd3": sd3,
    "flux": flux,
}
