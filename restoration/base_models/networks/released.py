"""Released weight files in the Latent Diffusion layout -> diffusers' networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from restoration.checkpoints import about, empty, load_strict
from restoration.ldm_layout import (
    Layout,
    controlnet_layout,
    unet_layout,
    vae_layout,
)
from restoration.state_dicts import within

SD_SCALING_FACTOR = 0.18215


class _NoHint(nn.Module):
    """Stands where a stock ControlNet embeds a hint image; DiffBIR's condition enters with the sample instead."""

    def forward(self, hint: Tensor) -> Tensor:
        return hint.new_zeros(())


def without_hint(controlnet: ControlNetModel) -> ControlNetModel:
    """The same network, its hint embedding replaced by nothing."""
    controlnet.controlnet_cond_embedding = _NoHint()
    return controlnet


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
    """UNet of a Latent Diffusion checkpoint, without its prefix; arguments as `unet_layout`. Raises CheckpointError."""
    state = within(state, ["out.2.weight"], file, "a UNet of the Latent Diffusion layout")
    with about(file):
        layout = unet_layout(_shapes(state), head_channels=head_channels, heads=heads)
    network = empty_unet(layout)
    _filled(network, layout, state, file)
    return network


def controlnet_from_released(
    state: Mapping[str, Tensor], file: Path | str, *, head_channels: int | None = 64, heads: int | None = None
) -> ControlNetModel:
    """DiffBIR's ControlNet; arguments as `unet_layout`. Raises CheckpointError."""
    state = within(state, ["zero_convs.0.0.weight"], file, "a ControlNet of the Latent Diffusion layout")
    with about(file):
        layout = controlnet_layout(_shapes(state), head_channels=head_channels, heads=heads)
    network = empty_controlnet(layout)
    _filled(network, layout, state, file)
    return network


def vae_from_released(
    state: Mapping[str, Tensor], file: Path | str, scaling_factor: float = SD_SCALING_FACTOR
) -> AutoencoderKL:
    """Autoencoder of a Latent Diffusion checkpoint, without its prefix. Raises CheckpointError."""
    state = within(state, ["encoder.conv_in.weight"], file, "an autoencoder of the Latent Diffusion layout")
    with about(file):
        layout = vae_layout(_shapes(state))
    network = empty_vae(layout, scaling_factor)
    _filled(network, layout, state, file)
    return network
