"""Every base model, made from tiny files in its released layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel

from restoration.base_models.interface import BaseModel
from restoration.base_models.pasd import PASD
from restoration.base_models.pisa import PiSASR
from restoration.base_models.pixel_control import PixelControl
from restoration.base_models.seesr import RAP, SeeSR
from restoration.base_models.tsdsr import TSDSR
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
    for parameter in control.parameters():
        if not parameter.any():  # as released: no longer the zeros that training begins with
            torch.nn.init.normal_(parameter, std=0.1)
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


def pisa(folder: Path) -> BaseModel:
    base, checkpoint = files.write_pisa(folder)
    return PiSASR.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"))


def tsdsr(folder: Path) -> BaseModel:
    base, checkpoint = files.write_tsdsr(folder)
    return TSDSR.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"))


MODELS: dict[str, Callable[[Path], BaseModel]] = {
    "controlnet": controlnet,
    "pasd": pasd,
    "xpsr": xpsr,
    "seesr": seesr,
    "rap": rap,
    "pisa": pisa,
    "tsdsr": tsdsr,
}
