"""SeeSR (arXiv 2311.16518), and RAP, which is SeeSR with another UNet: attentions to an embedding of the picture."""

from __future__ import annotations

from dataclasses import dataclass

from restoration.base_models.interface import SamplerSettings
from restoration.base_models.pixel_control import IMAGE, PixelControl, PixelControlSettings


@dataclass(frozen=True)
class SeeSRSettings(PixelControlSettings):
    """SFT trains the ControlNet and the image attentions."""

    name: str = "seesr"
    trainable: tuple[str, ...] = (r"controlnet\.", r"unet\..*\.second\.")
    start_timesteps: tuple[int, ...] = (999,)


@dataclass(frozen=True)
class RAPSettings(SeeSRSettings):
    """RAP's own training is of the whole UNet."""

    name: str = "rap"
    trainable: tuple[str, ...] = (r"unet\.",)


class SeeSR(PixelControl):
    """Needs the embedding "image" [1, tokens, 512] that the tagger (RAM, DAPE) makes."""

    KIND = "seesr"
    SETTINGS = SeeSRSettings
    SECOND = "image"
    ATTENTIONS = "image_attentions"
    NEEDS = (IMAGE,)
    SAMPLER = SamplerSettings(steps=50, spacing="leading", steps_offset=1, guidance_scale=5.5)


class RAP(SeeSR):
    """Prompts begin with the words it was trained with: what is wanted, and what is not.

    `from_released` takes SeeSR's folder as `checkpoint` and RAP's UNet as `unet`; the image attentions are SeeSR's.
    """

    KIND = "rap"
    SETTINGS = RAPSettings
    PROMPTS = ("[X]. ", "[V]. ")
