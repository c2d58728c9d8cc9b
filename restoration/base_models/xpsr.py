"""XPSR (arXiv 2403.05049): PASD's networks, and attentions to a second text that describes the picture's quality."""

from __future__ import annotations

from dataclasses import dataclass

from restoration.base_models.interface import SamplerSettings
from restoration.base_models.pixel_control import LOW, PixelControl, PixelControlSettings


@dataclass(frozen=True)
class XPSRSettings(PixelControlSettings):
    """SFT trains the ControlNet and the UNet's attentions but those to the text."""

    name: str = "xpsr"
    trainable: tuple[str, ...] = (r"controlnet\.", r"unet\..*\.(?:second|low|connect)\.")
    start_timesteps: tuple[int, ...] = (999,)


class XPSR(PixelControl):
    """Needs the embedding "low" of the quality text, and "negative_low" where guidance shall lead away from one."""

    KIND = "xpsr"
    SETTINGS = XPSRSettings
    SECOND = "residuals"
    ATTENTIONS = "pixel_attentions"
    NEEDS = (LOW,)
    HEADS = "pictures and latents"
    SAMPLER = SamplerSettings(steps=20, spacing="leading", steps_offset=1, guidance_scale=4.5)
