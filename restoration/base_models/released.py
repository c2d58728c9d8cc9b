"""Released weight files -> our networks, and the import of a released DiffBIR into a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from restoration.backbones.cleaners import cleaner_from_released
from restoration.base_models import text
from restoration.base_models.diffbir import DiffBIR, DiffBIRSettings, without_hint
from restoration.checkpoints import CheckpointError, empty, load_strict, read_state
from restoration.ldm_layout import (
    UNET_PREFIX,
    VAE_PREFIX,
    Layout,
    controlnet_layout,
    part,
    unet_layout,
    vae_layout,
)

SD_SCALING_FACTOR = 0.18215


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in state.items()}


def _filled(network: nn.Module, layout: Layout, state: Mapping[str, Tensor], file: Path | str) -> None:
    load_strict(network, layout.convert(state), file, shown=layout.released)
    network.eval()


def empty_unet(layout: Layout) -> UNet2DConditionModel:
    """The network of a UNet layout, without weights."""
    return empty(lambda: UNet2DConditionModel(**layout.config))


def empty_controlnet(layout: Layout) -> ControlNetModel:
    """The network of a ControlNet layout, without weights."""
    return empty(lambda: without_hint(ControlNetModel(**layout.config)))


def empty_vae(layout: Layout, scaling_factor: float = SD_SCALING_FACTOR) -> AutoencoderKL:
    """The network of an autoencoder layout, without weights."""
    return empty(lambda: AutoencoderKL(scaling_factor=scaling_factor, **layout.config))


def unet_from_released(
    state: Mapping[str, Tensor], file: Path | str, *, head_channels: int | None = 64, heads: int | None = None
) -> UNet2DConditionModel:
    """UNet of a Latent Diffusion checkpoint, prefix removed; arguments as `unet_layout`. Raises CheckpointError."""
    layout = unet_layout(_shapes(state), head_channels=head_channels, heads=heads)
    network = empty_unet(layout)
    _filled(network, layout, state, file)
    return network


def controlnet_from_released(
    state: Mapping[str, Tensor], file: Path | str, *, head_channels: int | None = 64, heads: int | None = None
) -> ControlNetModel:
    """DiffBIR's ControlNet; arguments as `unet_layout`. Raises CheckpointError."""
    layout = controlnet_layout(_shapes(state), head_channels=head_channels, heads=heads)
    network = empty_controlnet(layout)
    _filled(network, layout, state, file)
    return network


def vae_from_released(
    state: Mapping[str, Tensor], file: Path | str, scaling_factor: float = SD_SCALING_FACTOR
) -> AutoencoderKL:
    """Autoencoder of a Latent Diffusion checkpoint, prefix removed. Raises CheckpointError."""
    layout = vae_layout(_shapes(state))
    network = empty_vae(layout, scaling_factor)
    _filled(network, layout, state, file)
    return network


def import_diffbir(
    sd_checkpoint: Path,
    controlnet_checkpoint: Path,
    cleaner_checkpoint: Path,
    out_folder: Path,
    *,
    settings: DiffBIRSettings | None = None,
    prompt: str = "",
    negative_prompt: str | None = None,
    tokenizer: Path | None = None,
    head_channels: int = 64,
    keep_text_encoder: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Turn released files into a model folder.

    Args:
        sd_checkpoint: Stable Diffusion 2.1 in the Latent Diffusion layout (UNet, autoencoder, OpenCLIP text tower).
        controlnet_checkpoint: DiffBIR's v1, v2 or v2.1 file.
        cleaner_checkpoint: a Restormer or an SNR-aware file.
        settings: by default those of DiffBIR v1 and v2; v2.1 is
            `DiffBIRSettings(prediction="v_prediction", zero_terminal_snr=True)`.
        prompt, negative_prompt: their embeddings are stored; guidance needs the second ("" is allowed).
        tokenizer: folder with CLIP's vocab.json and merges.txt; only the empty prompt needs none.
        keep_text_encoder: also write text_encoder/, to make other embeddings later.
        dtype: how the weights are stored.

    Returns:
        out_folder.

    Raises:
        CheckpointError: a file is absent, unreadable or not of the expected layout.
        ValueError: a prompt without a tokenizer.
    """
    out_folder = Path(out_folder)
    released = read_state(sd_checkpoint)
    for prefix in (UNET_PREFIX, VAE_PREFIX, text.TEXT_PREFIX):
        if not any(k.startswith(prefix) for k in released):
            raise CheckpointError(
                f"{sd_checkpoint} has no keys {prefix}*; give the Stable Diffusion 2.1 checkpoint as one file in its "
                "original (not the diffusers) layout"
            )
    encoder = text.from_released(part(released, text.TEXT_PREFIX), sd_checkpoint)
    embedding = text.encode_prompt(encoder, prompt, tokenizer)
    negative = None if negative_prompt is None else text.encode_prompt(encoder, negative_prompt, tokenizer)
    model = DiffBIR(
        vae_from_released(part(released, VAE_PREFIX), sd_checkpoint),
        unet_from_released(part(released, UNET_PREFIX), sd_checkpoint, head_channels=head_channels),
        controlnet_from_released(read_state(controlnet_checkpoint), controlnet_checkpoint, head_channels=head_channels),
        cleaner_from_released(read_state(cleaner_checkpoint), cleaner_checkpoint),
        embedding,
        negative,
        settings or DiffBIRSettings(),
    )
    model.save(out_folder, dtype)
    if keep_text_encoder:
        encoder.save(out_folder / "text_encoder")
    return out_folder
