"""Every base model, made from tiny files in its released layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    FluxControlNetModel,
    FluxTransformer2DModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor

from restoration.base_models.diffbir import DiffBIR
from restoration.base_models.faithdiff import FaithDiff
from restoration.base_models.flow_flux import FluxControl, FluxControlSettings
from restoration.base_models.flow_sd3 import SD3Control
from restoration.base_models.interface import BaseModel, SamplerSettings
from restoration.base_models.networks import text
from restoration.base_models.networks.stablesr_released import STRUCTURE_PREFIX
from restoration.base_models.networks.text import TextConfig, TextEncoder
from restoration.base_models.pasd import PASD
from restoration.base_models.pisa import PiSASR
from restoration.base_models.pixel_control import PixelControl
from restoration.base_models.seesr import RAP, SeeSR
from restoration.base_models.stablesr import StableSR
from restoration.base_models.tsdsr import TSDSR
from restoration.base_models.xpsr import XPSR
from restoration.ldm_layout import UNET_PREFIX, VAE_PREFIX
from restoration.restore import sample
from tests.golden.case import recipe_tensor
from tests.restoration import attended_files, faithdiff_files
from tests.restoration import released_folders as files
from tests.restoration.ldm_keys import diffusion_keys, structure_keys, vae_keys, with_fusions, with_spade

CONTROLNET = {
    "block_out_channels": (16, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 12 + 6 * 8,
    "transformer_layers_per_block": (2, 1),
}


def diffbir(folder: Path) -> BaseModel:
    return DiffBIR.from_released(*files.write_diffbir_files(folder), negative_prompt="", head_channels=16)


def controlnet(folder: Path) -> BaseModel:
    return stock(folder, files.write_pipeline(folder / "base"), CONTROLNET)


def controlnet_sdxl(folder: Path) -> BaseModel:
    return stock(folder, files.write_sdxl_pipeline(folder / "base"), CONTROLNET | SDXL)


def stock(folder: Path, base: Path, config: dict[str, Any]) -> BaseModel:
    torch.manual_seed(4)
    up = ("UpBlock2D", "CrossAttnUpBlock2D")
    UNet2DConditionModel(up_block_types=up, **config).save_pretrained(base / "unet")
    control = ControlNetModel(conditioning_embedding_out_channels=(4, 4, 8, 8), **config)
    files.randomise_zeros(control)
    control.save_pretrained(folder / "control")
    cleaner = files.write_cleaner(folder / "cleaner.pth")
    return PixelControl.from_released(base, folder / "control", cleaner, prompt="x", negative_prompt="v")


def pasd(folder: Path) -> BaseModel:
    base = files.write_pipeline(folder / "base")
    checkpoint = files.write_attended("pasd", folder / "checkpoint")
    return PASD.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"))


def xpsr(folder: Path) -> BaseModel:
    base = files.write_pipeline(folder / "base")
    checkpoint = files.write_attended("xpsr", folder / "checkpoint")
    embeddings = files.write_embeddings(folder / "e.safetensors", low=(1, 9, 24), negative_low=(1, 9, 24))
    return XPSR.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"), embeddings=embeddings)


def seesr(folder: Path) -> BaseModel:
    base = files.write_pipeline(folder / "base")
    checkpoint = files.write_attended("seesr", folder / "checkpoint")
    embeddings = files.write_embeddings(folder / "e.safetensors", image=(1, 5, 512))
    return SeeSR.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"), embeddings=embeddings)


def rap(folder: Path) -> BaseModel:
    base = files.write_pipeline(folder / "base")
    checkpoint = files.write_attended("seesr", folder / "checkpoint")
    config, state = attended_files.attended(files.golden("seesr"))["unet"]
    files.write_network(folder / "unet", config, attended_files.another(state))
    embeddings = files.write_embeddings(folder / "e.safetensors", image=(1, 5, 512))
    return RAP.from_released(
        base, checkpoint, files.write_cleaner(folder / "cleaner.pth"), embeddings=embeddings, unet=folder / "unet"
    )


def faithdiff(folder: Path) -> FaithDiff:
    base = files.write_sdxl_pipeline(folder / "base")
    shapes = faithdiff_files.released_shapes(faithdiff_files.SMALL, encoder=(8, 8, 16, 16))
    file = folder / "FaithDiff.bin"
    torch.save(faithdiff_files.random_state(shapes), file)
    choices = faithdiff_files.choices_of(faithdiff_files.SMALL)
    cleaner = files.write_cleaner(folder / "cleaner.pth")
    return FaithDiff.from_released(base, file, cleaner, prompt="x", negative_prompt="v", choices=choices)


def write_stablesr(folder: Path) -> tuple[Path, Path, Path]:
    """StableSR's released files in small: its own (32 channels a head of the UNet, 2 heads), cleaner and CFW."""
    folder.mkdir(parents=True, exist_ok=True)
    tower = TextEncoder(TextConfig(width=24, heads=1, layers=3, context_length=9, vocab_size=49408)).state_dict()
    vae = vae_keys(ch_mult=(1, 1, 2), num_res_blocks=1)
    parts = {
        UNET_PREFIX: with_spade(diffusion_keys(channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,)), 32),
        STRUCTURE_PREFIX: structure_keys(channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), out_channels=32),
        VAE_PREFIX: vae,
        text.TEXT_PREFIX: {k: tuple(v.shape) for k, v in tower.items()},
    }
    state = {prefix + k: recipe_tensor(k, list(v)) for prefix, keys in parts.items() for k, v in keys.items()}
    torch.save({"state_dict": state | {"alphas_cumprod": torch.ones(1000)}}, folder / "stablesr.ckpt")
    # with weights of its own, so that a picture shows which autoencoder decoded it
    cfw = {k: recipe_tensor(f"cfw.{k}", list(v)) for k, v in with_fusions(vae, levels=(1, 2), blocks=1).items()}
    torch.save({"state_dict": cfw | {"loss.logvar": torch.zeros(())}}, folder / "cfw.ckpt")
    return folder / "stablesr.ckpt", files.write_cleaner(folder / "cleaner.pth"), folder / "cfw.ckpt"


def stablesr(folder: Path) -> StableSR:
    files.write_tokenizer(folder / "tokenizer")
    return StableSR.from_released(
        *write_stablesr(folder),
        negative_prompt="noise",
        tokenizer=folder / "tokenizer",
        head_channels=32,
        structure_heads=2,
    )


def pisa(folder: Path) -> BaseModel:
    base, checkpoint = files.write_pisa(folder)
    return PiSASR.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"))


def tsdsr(folder: Path) -> BaseModel:
    base, checkpoint = files.write_tsdsr(folder)
    return TSDSR.from_released(base, checkpoint, files.write_cleaner(folder / "cleaner.pth"))


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
    "diffbir": diffbir,
    "controlnet": controlnet,
    "controlnet_sdxl": controlnet_sdxl,
    "pasd": pasd,
    "xpsr": xpsr,
    "seesr": seesr,
    "rap": rap,
    "faithdiff": faithdiff,
    "stablesr": stablesr,
    "pisa": pisa,
    "tsdsr": tsdsr,
    "sd3": sd3,
    "flux": flux,
}


def short(model: BaseModel) -> SamplerSettings:
    """A short chain."""
    return SamplerSettings(steps=min(2, model.sampler.steps))


def picture(count: int = 2) -> Tensor:
    return torch.rand(count, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def restored(model: BaseModel) -> Tensor:
    """What the model makes of `picture()`."""
    return sample(model, picture(), short(model), torch.Generator().manual_seed(0))


AS_ANOTHER = ("rap", "controlnet_sdxl")  # of the same code as seesr and controlnet
EACH = [pytest.param(name, marks=pytest.mark.slow if name in AS_ANOTHER else ()) for name in MODELS]
"""For `parametrize`: every model, those that repeat another among the slow tests."""
