"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206) with a ControlNet that sees the cleaned image's latent.

Of two kinds of ControlNet that diffusers' class holds, one (`force_zeros_for_pooled_projection`) was trained on
latents without the VAE's shift factor and with zeros for the pooled text; another has no embedding of its own for
x_t, and is given the transformer's (SD 3.5 Large).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3ControlNetModel, SD3Transformer2DModel
from torch import Tensor

from restoration.base_models.flow_control import FlowControl, FlowSettings, Networks
from restoration.base_models.interface import Condition, SamplerSettings
from restoration.base_models.networks.sdxl import POOLED
from restoration.precision import dtype_of


@dataclass(frozen=True)
class SD3ControlSettings(FlowSettings):
    """SD 3 and 3.5 shift by 3."""

    name: str = "controlnet_sd3"


class SD3Networks(Networks):
    """An SD3Transformer2DModel and an SD3ControlNetModel."""

    def forward(
        self, x_t: Tensor, timestep: Tensor, control: Tensor, text: Tensor, pooled: Tensor, control_scale: float = 1.0
    ) -> Tensor:
        """v, float32 like x_t.

        Args:
            x_t: [B, C, h, w]; timestep: [B], 1000 σ.
            control: [B, C, h, w], the latent that the ControlNet sees.
            text: [B, tokens, width]; pooled: [B, width].
        """
        dtype, own, net = dtype_of(self.transformer), dtype_of(self.controlnet), self.controlnet.config
        x_t, text, pooled = (v.to(dtype) for v in (x_t, text, pooled))
        residuals = self.controlnet(
            (self.transformer.pos_embed(x_t) if self.controlnet.pos_embed is None else x_t).to(own),
            control.to(own),
            control_scale,
            text.to(own) if net.joint_attention_dim is not None else None,
            torch.zeros_like(pooled, dtype=own) if net.force_zeros_for_pooled_projection else pooled.to(own),
            timestep,
            return_dict=False,
        )[0]
        output: Tensor = self.transformer(
            x_t,
            text,
            pooled,
            timestep,
            block_controlnet_hidden_states=[r.to(dtype) for r in residuals],
            return_dict=False,
        )[0]
        return output.float()


class SD3Control(FlowControl):
    """Images up to `pos_embed_max_size` patches a side; guidance as in SD, the ControlNet in both branches."""

    KIND = "controlnet_sd3"
    SETTINGS = SD3ControlSettings
    TRANSFORMER = SD3Transformer2DModel
    CONTROLNET = SD3ControlNetModel
    NETWORKS = SD3Networks
    SAMPLER = SamplerSettings(steps=28, spacing="linspace", guidance_scale=7.0)

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        config = self._policy.transformer.config
        self.side_limit = self.vae_factor * config.patch_size * config.pos_embed_max_size

    @classmethod
    def check(cls, vae: Any, transformer: Any, controlnet: Any, settings: Any) -> int:
        channels = [vae.latent_channels, transformer.in_channels, transformer.out_channels, controlnet.in_channels]
        if len(set(channels)) > 1:
            raise ValueError(
                f"{cls.KIND}: VAE with {channels[0]} latent channels, transformer with {channels[1]} inputs and "
                f"{channels[2]} outputs, ControlNet with {channels[3]} inputs: must be equal"
            )
        if extra := controlnet.extra_conditioning_channels:
            raise ValueError(
                f"{cls.KIND}: a ControlNet with {extra} more channels of condition, as inpainting has them, "
                "is not supported; take one that sees an image's latent alone"
            )
        for name in ("patch_size", "joint_attention_dim", "pooled_projection_dim"):
            own, wanted = getattr(controlnet, name), getattr(transformer, name)
            if own != wanted and not (name == "joint_attention_dim" and own is None):
                raise ValueError(f"{cls.KIND}: {name} is {wanted} in the transformer and {own} in the ControlNet")
        patch: int = transformer.patch_size
        return patch

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.text is not None
        unshifted = self._policy.controlnet.config.force_zeros_for_pooled_projection
        control = condition.latent + self.offset if unshifted else condition.latent
        pooled = condition.others[POOLED]
        output: Tensor = self._policy(x_t, timestep, control, condition.text, pooled, self.settings.control_scale)
        return output
