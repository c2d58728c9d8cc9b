"""Keys, shapes and weights of released FaithDiff files of other widths."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.autoencoders.vae import Encoder
from torch import Tensor

from restoration.base_models.networks.faithdiff_networks import FaithDiffChoices
from restoration.checkpoints import empty

Shapes = dict[str, tuple[int, ...]]

POOLED, WORDS = 12, 24
SMALL: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (1, 4),
    "use_linear_projection": True,
    "addition_time_embed_dim": 8,
}
DEEP: dict[str, Any] = {
    "in_channels": 5,
    "out_channels": 3,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32, 48),
    "layers_per_block": (2, 1, 1),
    "transformer_layers_per_block": (3, 1, 2),
    "attention_head_dim": (2, 4, 3),
    "use_linear_projection": False,
    "addition_time_embed_dim": 6,
    "norm_num_groups": 8,
}


def choices_of(config: dict[str, Any]) -> FaithDiffChoices:
    return FaithDiffChoices(
        heads=config["attention_head_dim"],
        time_width=config["addition_time_embed_dim"],
        unet_groups=config.get("norm_num_groups", 32),
        encoder_groups=8,
        condition_groups=4,
        injection_heads=2,
    )


def released_shapes(
    config: dict[str, Any],
    encoder: tuple[int, ...] = (8, 16),
    condition: int = 20,
    layers: int = 2,
    hidden: int = 30,
) -> Shapes:
    """Keys and shapes of a released file with these networks."""
    pooled = POOLED + 6 * config["addition_time_embed_dim"]
    added = {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": pooled}
    unet = empty(lambda: UNet2DConditionModel(cross_attention_dim=WORDS, **added, **config))
    blocks = ("DownEncoderBlock2D",) * len(encoder)
    seen = empty(lambda: Encoder(down_block_types=blocks, block_out_channels=encoder, norm_num_groups=8))
    shapes = {k: tuple(v.shape) for k, v in unet.state_dict().items()}
    kept = {k: v for k, v in seen.state_dict().items() if not k.startswith(("conv_norm_out", "conv_out"))}
    shapes |= {f"denoise_encoder.{k}": tuple(v.shape) for k, v in kept.items()}
    features, first = encoder[-1], config["block_out_channels"][0]
    width = first + condition
    weights = {
        "condition_embedding.norm_in": (features,),
        "condition_embedding.conv_in": (features, features, 3, 3),
        "condition_embedding.conv_out": (condition, features, 3, 3),
        "spatial_ch_projs": (first, width),
    }
    for i in range(layers):
        layer = f"information_transformer_layes.{i}"
        weights |= {f"{layer}.ln_1": (width,), f"{layer}.ln_2": (width,), f"{layer}.attn.out_proj": (width, width)}
        weights |= {f"{layer}.mlp.c_fc": (hidden, width), f"{layer}.mlp.c_proj": (width, hidden)}
        shapes |= {f"{layer}.attn.in_proj_weight": (3 * width, width), f"{layer}.attn.in_proj_bias": (3 * width,)}
    for name, shape in weights.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


def random_state(shapes: Shapes) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        k: torch.randn(v, generator=generator) / max(1, torch.Size(v[1:]).numel()) ** 0.5 for k, v in shapes.items()
    }
