"""Tiny files in the layouts that users download, with the weights of the golden recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from restoration.backbones.restormer import Restormer, RestormerConfig
from restoration.base_models.diffusers_folder import WEIGHTS_FILE
from tests.golden.case import Golden

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WORDS = ("clean", "noise", "[", "]", "x", "v", ".", ",", "8", "k")


def golden(name: str) -> Golden:
    return Golden.read(GOLDEN / f"{name}.json")


def write_network(folder: Path, config: Any, state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in state.items()}, folder / WEIGHTS_FILE)


def write_golden_networks(name: str, folder: Path) -> Path:
    """The networks of a golden file as diffusers folders."""
    case = golden(name)
    for part, config in case.config.items():
        write_network(folder / part, config, case.state(part))
    return folder


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


def write_tokenizer(folder: Path) -> None:
    """CLIP's two files, with letters and a few words as its vocabulary."""
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))]
    listed = [*letters, *(c + "</w>" for c in letters), *(w + "</w>" for w in WORDS if len(w) > 1)]
    vocabulary = {token: i for i, token in enumerate([*listed, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def write_pipeline(folder: Path, width: int = 24) -> Path:
    """A Stable Diffusion folder of VAE, text encoder and tokenizer."""
    small_vae().save_pretrained(folder / "vae")
    write_tokenizer(folder / "tokenizer")
    size = len(json.loads((folder / "tokenizer" / "vocab.json").read_text()))
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=9,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    return folder


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


def write_embeddings(file: Path, **shapes: tuple[int, ...]) -> Path:
    generator = torch.Generator().manual_seed(3)
    save_file({name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, file)
    return file
