"""Flux.1 (dev, schnell) with a ControlNet that sees the cleaned image's latent.

Its transformer takes squares of 2 x 2 latent cells as tokens, placed by row and column, and a strength of guidance
as a number that it was distilled for (`guidance_embeds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from torch import Tensor

from restoration.base_models.flow_control import FlowControl, FlowSettings, Networks
from restoration.base_models.interface import Condition, SamplerSettings
from restoration.base_models.networks.sdxl import POOLED
from restoration.precision import dtype_of

PATCH = 2


@dataclass(frozen=True)
class FluxControlSettings(FlowSettings):
    """
    Attributes:
        shift: e^mu of Flux.1 dev: 3.16 at 1024 x 1024 px, 1.88 at 512 x 512; schnell has 1.
        guidance_embed: strength of guidance told to networks with `guidance_embeds` (dev); others ignore it.
        control_mode: what a ControlNet of several conditions (union) is told to see; None for others.
    """

    name: str = "controlnet_flux"
    shift: float = 3.16
    guidance_embed: float = 3.5
    control_mode: int | None = None


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w], h and w even, as tokens [B, h/2 * w/2, 4 C], row by row; a token's channels change slowest."""
    return F.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The latents [B, C, height, width] that `pack` made `tokens` of."""
    squares = tokens.transpose(1, 2).unflatten(2, (height // PATCH, width // PATCH))
    return F.pixel_shuffle(squares, PATCH)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """Where the tokens of latents [B, C, height, width] are: float32 [h/2 * w/2, 3], rows (0, row, column)."""
    axes = [torch.arange(n, device=device) for n in (1, height // PATCH, width // PATCH)]
    return torch.cartesian_prod(*axes).float()


class FluxNetworks(Networks):
    """A FluxTransformer2DModel and a FluxControlNetModel."""

    def forward(
        self,
        x_t: Tensor,
        timestep: Tensor,
        control: Tensor,
        text: Tensor,
        pooled: Tensor,
        control_scale: float = 1.0,
        guidance: float = 3.5,
        mode: int | None = None,
    ) -> Tensor:
        """v, float32 like x_t.

        Args:
            x_t: [B, C, h, w], h and w even; timestep: [B], 1000 σ.
            control: [B, C, h, w], the latent that the ControlNet sees.
            text: [B, tokens, width]; pooled: [B, width].
            guidance, mode: as `FluxControlSettings`.
        """
        height, width = x_t.shape[-2:]
        dtype, own = dtype_of(self.transformer), dtype_of(self.controlnet)
        strength = x_t.new_full((len(x_t),), guidance, dtype=torch.float32)
        shared: dict[str, Any] = {
            "timestep": timestep / 1000,
            "img_ids": places(height, width, x_t.device),
            "txt_ids": x_t.new_zeros(text.shape[1], 3, dtype=torch.float32),
            "return_dict": False,
        }

        def seen(dtype: torch.dtype) -> dict[str, Tensor]:
            given = {"hidden_states": pack(x_t), "encoder_hidden_states": text, "pooled_projections": pooled}
            return {name: value.to(dtype) for name, value in given.items()}

        double, single = self.controlnet(
            controlnet_cond=pack(control).to(own),
            controlnet_mode=None if mode is None else torch.full((len(x_t), 1), mode, device=x_t.device),
            conditioning_scale=control_scale,
            guidance=strength if self.controlnet.config.guidance_embeds else None,
            **seen(own),
            **shared,
        )
        double, single = (None if r is None else [v.to(dtype) for v in r] for r in (double, single))
        tokens = self.transformer(
            guidance=strength if self.transformer.config.guidance_embeds else None,
            controlnet_block_samples=double,
            controlnet_single_block_samples=single,
            **seen(dtype),
            **shared,
        )[0]
        return unpack(tokens, height, width).float()


class FluxControl(FlowControl):
    """Needs no negative embeddings: dev is told its guidance. With them, both branches run the ControlNet."""

    KIND = "controlnet_flux"
    SETTINGS = FluxControlSettings
    TRANSFORMER = FluxTransformer2DModel
    CONTROLNET = FluxControlNetModel
    NETWORKS = FluxNetworks
    SAMPLER = SamplerSettings(steps=28, spacing="trailing")
    settings: FluxControlSettings

    @classmethod
    def check(cls, vae: Any, transformer: Any, controlnet: Any, settings: Any) -> int:
        latent = vae.latent_channels
        outputs = transformer.out_channels or transformer.in_channels
        if {transformer.in_channels, outputs, controlnet.in_channels} != {PATCH**2 * latent}:
            raise ValueError(
                f"{cls.KIND}: VAE with {latent} latent channels, transformer with {transformer.in_channels} inputs and "
                f"{outputs} outputs, ControlNet with {controlnet.in_channels} inputs: all must be 4 x the VAE's"
            )
        if controlnet.conditioning_embedding_channels is not None:
            raise ValueError(f"{cls.KIND}: a ControlNet that sees pixels (an input_hint_block) is not supported")
        modes, mode = controlnet.num_mode, settings.control_mode
        if (modes is None) != (mode is None) or (modes is not None and not 0 <= mode < modes):
            known = f"from 0 to {modes - 1}" if modes is not None else "None, the ControlNet has no modes"
            raise ValueError(f"{cls.KIND}: control_mode={mode}: {known}")
        for name in ("joint_attention_dim", "pooled_projection_dim", "axes_dims_rope"):
            own, wanted = (tuple(v) if isinstance(v, list) else v for v in (controlnet[name], transformer[name]))
            if own != wanted:
                raise ValueError(f"{cls.KIND}: {name} is {wanted} in the transformer and {own} in the ControlNet")
        return PATCH

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.text is not None
        chosen = self.settings
        output: Tensor = self._policy(
            x_t,
            timestep,
            condition.latent,
            condition.text,
            condition.others[POOLED],
            chosen.control_scale,
            chosen.guidance_embed,
            chosen.control_mode,
        )
        return output
