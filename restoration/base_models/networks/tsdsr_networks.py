"""TSD-SR (arXiv 2411.18263): Stable Diffusion 3's transformer with updates, and its VAE, updated in the encoder.

One step from z, the scaled latent of the degraded image, along the flow: restored latent = z - output at timestep 1000
with one stored text embedding. The VAE's shift_factor is used nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, SD3Transformer2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from restoration.base_models.networks.low_rank import Release, RemembersActive, active, load_updates
from restoration.checkpoints import CheckpointError, Shapes, children, empty, load_strict
from restoration.precision import dtype_of

RELEASE = Release(prefix="transformer.", name="tsd")  # the VAE's file has this prefix too


class UpdatedTransformer(RemembersActive, SD3Transformer2DModel):
    """The stock network; its layers may have updates."""


class TsdPolicy(nn.Module):
    """The network of the one step."""

    def __init__(self, transformer: UpdatedTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self, z: Tensor, timestep: Tensor, prompt_embeds: Tensor, pooled: Tensor, updated: bool = True
    ) -> Tensor:
        """z [B,C,h,w]; timestep [B] in [0, 1000]; prompt_embeds [B,tokens,width]; pooled [B,width] -> float32 like z.

        Args:
            updated: False is Stable Diffusion 3 itself.
        """
        dtype = dtype_of(self.transformer)
        with active(None if updated else ()):
            output: Tensor = self.transformer(
                z.to(dtype), prompt_embeds.to(dtype), pooled.to(dtype), timestep, return_dict=False
            )[0]
        return output.float()


def posterior(vae: AutoencoderKL, images: Tensor, updated: bool = True) -> DiagonalGaussianDistribution:
    """Of the unscaled latents of images [B,3,H,W] in [0, 1]; without the encoder's updates if not `updated`."""
    with active(None if updated else ()):
        return vae.encode((images * 2 - 1).to(dtype_of(vae))).latent_dist


def lq_latents(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> Tensor:
    """(mean + std * noise) * scaling factor, float32 [B,C,h,w]; images [B,3,H,W] in [0, 1], standard normal noise."""
    found = posterior(vae, images)
    return (found.mean.float() + found.std.float() * noise) * vae.config.scaling_factor


def empty_transformer(shapes: Shapes, config: Mapping[str, Any], file: str) -> UpdatedTransformer:
    """The network, without weights and updates, of a transformer's keys in the diffusers layout.

    Args:
        config: its config.json, for what no shape tells, such as `attention_head_dim`, the width of a head.

    Raises:
        CheckpointError: no such transformer, or no width of a head that divides its own.
    """
    try:
        width, latent, patch, _ = shapes["pos_embed.proj.weight"]
        known = {
            "patch_size": patch,
            "in_channels": latent,
            "out_channels": shapes["proj_out.weight"][0] // patch**2,
            "num_layers": children(shapes, "transformer_blocks"),
            "joint_attention_dim": shapes["context_embedder.weight"][1],
            "caption_projection_dim": shapes["context_embedder.weight"][0],
            "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
            "pos_embed_max_size": math.isqrt(shapes["pos_embed.pos_embed"][1]),
        }
    except KeyError as error:
        raise CheckpointError(f"{file} is no transformer of Stable Diffusion 3: it has no {error}") from error
    head = config.get("attention_head_dim")
    if not isinstance(head, int) or head < 1 or width % head:
        raise CheckpointError(f"{file}: config.json has attention_head_dim {head}, which must divide the width {width}")
    known["num_attention_heads"] = width // head
    return empty(lambda: UpdatedTransformer.from_config({**config, **known}))


def empty_vae(shapes: Shapes, config: Mapping[str, Any], file: str) -> AutoencoderKL:
    """The autoencoder, without weights and updates, of its keys in the diffusers layout.

    Args:
        config: its config.json, for what no shape tells, such as `scaling_factor`.

    Raises:
        CheckpointError: no such autoencoder, or no scaling factor.
    """
    if "scaling_factor" not in config:
        raise CheckpointError(f"{file}: its config.json has no scaling_factor, and the weights don't tell it")
    levels = children(shapes, "encoder.down_blocks")
    try:
        known = {
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "latent_channels": shapes["decoder.conv_in.weight"][1],
            "block_out_channels": tuple(
                shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels)
            ),
            "layers_per_block": children(shapes, "encoder.down_blocks.0.resnets"),
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "use_quant_conv": "quant_conv.weight" in shapes,
            "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        }
    except KeyError as error:
        raise CheckpointError(f"{file} is no autoencoder in the diffusers layout: it has no {error}") from error
    return empty(lambda: AutoencoderKL.from_config({**config, **known}))


def transformer_from_released(
    transformer: Mapping[str, Tensor],
    config: Mapping[str, Any],
    updates: Mapping[str, Tensor],
    transformer_file: Path | str,
    updates_file: Path | str,
) -> UpdatedTransformer:
    """Stable Diffusion 3's transformer with TSD-SR's transformer.safetensors, in evaluation mode, float32.

    Args:
        config: of the transformer, as `empty_transformer` needs it.

    Raises:
        CheckpointError: a key is missing, unknown or of another shape.
    """
    network = empty_transformer(_shapes(transformer), config, str(transformer_file))
    load_strict(network, transformer, transformer_file)
    load_updates(network, updates, RELEASE, str(updates_file))
    network.eval()
    return network


def policy_from_released(
    transformer: Mapping[str, Tensor],
    config: Mapping[str, Any],
    updates: Mapping[str, Tensor],
    transformer_file: Path | str,
    updates_file: Path | str,
) -> TsdPolicy:
    """The policy of `transformer_from_released`. Raises CheckpointError."""
    return TsdPolicy(transformer_from_released(transformer, config, updates, transformer_file, updates_file)).eval()


def vae_from_released(
    vae: Mapping[str, Tensor],
    config: Mapping[str, Any],
    updates: Mapping[str, Tensor],
    vae_file: Path | str,
    updates_file: Path | str,
) -> AutoencoderKL:
    """Stable Diffusion 3's VAE with TSD-SR's vae.safetensors, in evaluation mode, float32.

    Args:
        config: of the VAE, as `empty_vae` needs it.

    Raises:
        CheckpointError: a key is missing, unknown or of another shape.
    """
    network = empty_vae(_shapes(vae), config, str(vae_file))
    load_strict(network, vae, vae_file)
    load_updates(network, updates, RELEASE, str(updates_file))
    network.eval()
    return network


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in state.items()}
