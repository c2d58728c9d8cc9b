"""Tiny files in the layouts that users download, with the weights of the golden recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.networks import text
from restoration.base_models.networks.diffusers_folder import WEIGHTS_FILE
from restoration.base_models.networks.text import TextConfig, TextEncoder
from tests.golden.case import Golden
from tests.restoration import attended_files
from tests.restoration.ldm_keys import diffusion_keys, vae_keys

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WORDS = ("clean", "noise", "[", "]", "x", "v", ".", ",", "8", "k")


def golden(name: str) -> Golden:
    return Golden.read(GOLDEN / f"{name}.json")


def write_network(folder: Path, config: Any, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS_FILE)


def write_attended(name: str, folder: Path) -> Path:
    """The networks of PASD, XPSR or SeeSR as diffusers folders."""
    for part, (config, state) in attended_files.attended(golden(name)).items():
        write_network(folder / part, config, state)
    return folder


def write_pisa(folder: Path) -> tuple[Path, Path]:
    """The folder of Stable Diffusion 2.1, and PiSA-SR's own file."""
    config, state, content = attended_files.pisa(golden("pisa"))
    base = write_pipeline(folder / "base")
    write_network(base / "unet", config, state)
    torch.save(content, folder / "pisa_sr.pkl")
    return base, folder / "pisa_sr.pkl"


def write_tsdsr(folder: Path) -> tuple[Path, Path]:
    """The folder of Stable Diffusion 3, and TSD-SR's."""
    case = golden("tsdsr")
    base, checkpoint = folder / "base", folder / "tsdsr"
    checkpoint.mkdir()
    for part, config in (("transformer", case.config["transformer"]), ("vae", case.config["vae"])):
        write_network(base / part, config, case.state(part))
        save_file(case.state(f"{part}_lora"), checkpoint / f"{part}.safetensors")
    torch.save(case.inputs["prompt_embeds"], checkpoint / "prompt_embeds.pt")
    torch.save(case.inputs["pooled_prompt_embeds"], checkpoint / "pool_embeds.pt")
    return base, checkpoint


def small_vae(latents: int = 4, levels: int = 4, **others: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latents,
        norm_num_groups=4,
        scaling_factor=0.7,
        **others,
    )


def write_tokenizer(folder: Path, **config: str) -> int:
    """CLIP's two files, with letters and a few words as its vocabulary, and a `config`; gives the vocabulary's size."""
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    listed = [*letters, *(c + "</w>" for c in letters), *(w + "</w>" for w in WORDS if len(w) > 1)]
    vocabulary = {token: i for i, token in enumerate([*listed, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocabulary)


def write_pipeline(folder: Path, width: int = 24) -> Path:
    """A Stable Diffusion folder of VAE, text encoder and tokenizer."""
    small_vae().save_pretrained(folder / "vae")
    torch.manual_seed(1)
    CLIPTextModel(text_config(write_tokenizer(folder / "tokenizer"), width)).save_pretrained(folder / "text_encoder")
    return folder


def write_sdxl_pipeline(folder: Path, widths: tuple[int, int] = (10, 14), pooled: int = 12) -> Path:
    """An SDXL folder of VAE, two text encoders and their tokenizers, whose paddings differ."""
    small_vae().save_pretrained(folder / "vae")
    sizes = write_tokenizer(folder / "tokenizer"), write_tokenizer(folder / "tokenizer_2", pad_token="!")
    torch.manual_seed(1)
    first, second = (text_config(size, width, 3) for size, width in zip(sizes, widths, strict=True))
    second.projection_dim = pooled
    CLIPTextModel(first).save_pretrained(folder / "text_encoder")
    CLIPTextModelWithProjection(second).save_pretrained(folder / "text_encoder_2")
    return folder


def text_config(vocabulary: int, width: int, layers: int = 1) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=9,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )


def randomise_zeros(network: nn.Module) -> None:
    """Training begins with zeros in a ControlNet; released ones have none left."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)


def write_flow_vae(folder: Path, latents: int = 4) -> Path:
    """An autoencoder as SD 3 and Flux have: with a shift factor; it encodes with hardly any noise."""
    vae = small_vae(latents, shift_factor=0.3, use_quant_conv=False, use_post_quant_conv=False)
    last = vae.encoder.conv_out
    with torch.no_grad():
        last.weight[latents:] = 0
        last.bias[latents:] = -30.0  # the least log variance
    vae.save_pretrained(folder)
    return folder


def write_cleaner(file: Path) -> Path:
    torch.manual_seed(2)
    cleaner = Restormer(RestormerConfig(dim=8, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1))
    torch.save({"params": cleaner.state_dict()}, file)
    return file


def write_embeddings(file: Path, seed: int = 3, **shapes: tuple[int, ...]) -> Path:
    file.parent.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    save_file({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, file)
    return file


def write_diffbir_files(folder: Path) -> tuple[Path, Path, Path]:
    """Released files in small: the Stable Diffusion checkpoint, the ControlNet, the cleaner."""
    generator = torch.Generator().manual_seed(0)
    tower = TextEncoder(TextConfig(width=24, heads=1, layers=3, context_length=9, vocab_size=49408)).state_dict()
    shapes = {f"{text.TEXT_PREFIX}{k}": tuple(v.shape) for k, v in tower.items()}
    shapes[f"{text.TEXT_PREFIX}text_projection"] = (24, 24)
    sizes = {"channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (2,)}
    shapes |= {f"model.diffusion_model.{k}": v for k, v in diffusion_keys(**sizes).items()}  # type: ignore[arg-type]
    shapes |= {f"first_stage_model.{k}": v for k, v in vae_keys(ch_mult=(1, 2), num_res_blocks=1).items()}
    sd = {k: torch.randn(v, generator=generator) * 0.05 for k, v in shapes.items()} | {
        "alphas_cumprod": torch.ones(1000)
    }
    control = diffusion_keys(**sizes, hint_channels=4)  # type: ignore[arg-type]
    torch.save({"global_step": 1, "state_dict": sd}, folder / "sd.ckpt")
    torch.save({f"module.{k}": torch.randn(v) * 0.05 for k, v in control.items()}, folder / "v2.pth")
    write_cleaner(folder / "deraining.pth")
    return folder / "sd.ckpt", folder / "v2.pth", folder / "deraining.pth"
