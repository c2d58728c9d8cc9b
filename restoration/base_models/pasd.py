"""PASD (arXiv 2308.14469): SD 1.5, a ControlNet, and pixel-aware attentions to its residuals in the UNet."""

from __future__ import annotations

from dataclasses import dataclass

from restoration.base_models.interface import SamplerSettings
from restoration.base_models.pixel_control import PixelControl, PixelControlSettings


@dataclass(frozen=True)
class PASDSettings(PixelControlSettings):
    """SFT trains the ControlNet and the pixel attentions. The chain starts from the input's latent, noised twice."""

    name: str = "pasd"
    trainable: tuple[str, ...] = (r"controlnet\.", r"unet\..*\.second\.")
    start_timesteps: tuple[int, ...] = (999, 900)


class PASD(PixelControl):
    """The reference samples by UniPC, which has no noise; here DDPM takes as many steps."""

    KIND = "pasd"
    SETTINGS = PASDSettings
    SECOND = "residuals"
    ATTENTIONS = "pixel_attentions"
    PROMPTS = ("clean, high-resolution, 8k", "dotted, noise, blur, lowres, smooth")
    HEADS = "pictures"
    SAMPLER = SamplerSettings(steps=20, spacing="leading", steps_offset=1, guidance_scale=9.0)
