"""StableSR (arXiv 2305.07015): Stable Diffusion steered by a structure encoder; with CFW its decoder sees the image.

Two things differ from the reference. It looks at the LQ image where this looks at the cleaned one, and it draws the
LQ latent from the posterior, whose mode this takes: a rollout and its replay must see one condition.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner, cleaner_from_released
from restoration.base_models.interface import Condition, SamplerSettings
from restoration.base_models.latent import LORA_LAYERS, LatentDiffusion, LatentSettings
from restoration.base_models.networks import text
from restoration.base_models.networks.diffusers_folder import read_network, read_state_of, weights_file
from restoration.base_models.networks.fused_vae import FusedVAE
from restoration.base_models.networks.parts import Part, config_file, save_over
from restoration.base_models.networks.released import vae_from_released
from restoration.base_models.networks.spade import spade_unet
from restoration.base_models.networks.stablesr_export import released_state
from restoration.base_models.networks.stablesr_networks import StableSRPolicy
from restoration.base_models.networks.stablesr_released import (
    STRUCTURE_PREFIX,
    fused_vae_from_released,
    policy_from_released,
)
from restoration.base_models.networks.structure import StructureEncoder
from restoration.checkpoints import CheckpointError, empty, load_strict, read_json, read_state
from restoration.file_kinds import first
from restoration.ldm_layout import UNET_PREFIX, VAE_PREFIX, bare, part
from restoration.precision import dtype_of
from restoration.statistics import shared

UNET, ENCODER, FUSED = "unet", "structure_encoder", "fused_vae"  # folders


@dataclass(frozen=True)
class StableSRSettings(LatentSettings):
    """The released model for 512 pixels predicts epsilon, 768v v_prediction.

    Attributes:
        fusion_weight: how much the decoder takes from the cleaned image, from 0, the plain autoencoder, to 1; above
            0 needs the CFW autoencoder.
    """

    name: str = "stablesr"
    trainable: tuple[str, ...] = (r"structure_encoder\.", r"unet\..*\.spade\.")
    lora_layers: str = rf"{LORA_LAYERS}|shared|gamma|beta"
    fusion_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.fusion_weight <= 1:
            raise ValueError(f"fusion_weight={self.fusion_weight}: from 0 to 1")


class StableSR(LatentDiffusion):
    """Restores without guidance; with a negative text it can also be guided."""

    KIND = "stablesr"
    SETTINGS = StableSRSettings
    SAMPLER = SamplerSettings(steps=200, spacing="linspace", colour_fix="adain")
    RELEASED_FUSION_WEIGHT = 0.5
    settings: StableSRSettings
    _policy: StableSRPolicy

    def __init__(
        self,
        vae: AutoencoderKL,
        policy: StableSRPolicy,
        cleaner: Cleaner,
        embeddings: Mapping[str, Tensor],
        fused: FusedVAE | None = None,
        settings: StableSRSettings | None = None,
    ) -> None:
        """
        Args:
            vae: makes every latent.
            embeddings: "text" [1, tokens, width] and, for guidance, "negative_text".
            fused: the CFW autoencoder, which decodes where `settings.fusion_weight` is above 0.

        Raises:
            ValueError: networks, embeddings or settings that don't fit each other.
        """
        settings = settings or StableSRSettings()
        unet, encoder = policy.unet.config, policy.structure_encoder.config
        if not vae.config.latent_channels == unet.in_channels == encoder.in_channels:
            raise ValueError(
                f"StableSR: VAE with {vae.config.latent_channels} latent channels, UNet with {unet.in_channels} inputs "
                f"and structure encoder with {encoder.in_channels}: must be equal"
            )
        gives = len(encoder.block_out_channels), encoder.out_channels
        takes = len(unet.block_out_channels), _spade(policy)["features"]
        if gives != takes:
            raise ValueError(
                f"StableSR: the structure encoder gives {gives[0]} feature maps of {gives[1]} channels, the UNet takes "
                f"{takes[0]} of {takes[1]}"
            )
        if fused is None and settings.fusion_weight:
            raise ValueError(f"StableSR: fusion_weight={settings.fusion_weight} needs the CFW autoencoder; choose 0")
        if fused is not None and _scale(fused.vae) != _scale(vae):
            raise ValueError("StableSR: the CFW autoencoder has other latents (channels, scale) than the VAE")
        super().__init__(vae, policy, cleaner, embeddings, settings, 2 ** (gives[0] - 1))
        if fused is not None:
            fused = fused.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.fused = fused

    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        assert condition.text is not None
        output: Tensor = self._policy(x_t, timestep, condition.latent, condition.text)
        return output

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        """With `fusion_weight` the decoder also sees the encoder's features of the cleaned image.

        They are made here, once for each run of equal images: as part of the condition they would be its far
        largest tensors, of use to nothing but decoding.
        """
        if self.fused is None or condition is None or not self.settings.fusion_weight:
            return super().decode(latents)
        dtype = dtype_of(self.fused.vae)
        clean, index = _runs(condition.clean)
        _, features = self.fused.encode((clean * 2 - 1).to(dtype))
        pixels = self.fused.decode(
            (latents / self.vae.config.scaling_factor).to(dtype),
            {level: f[index] for level, f in features.items()},
            self.settings.fusion_weight,
        )
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def to(self, device: torch.device | str) -> Self:
        if self.fused is not None:
            self.fused.to(device)
        return super().to(device)

    def released_state(self) -> dict[str, Tensor]:
        """UNet and structure encoder, keys and shapes as in a released file (`policy_from_released` reads them).

        Raises:
            ValueError: the LoRA of a training is still attached to the policy.
        """
        self.refuse_lora()
        return released_state(self._policy)

    def export(self, folder: Path, trained: Collection[str], over: Path | None = None) -> None:
        """`over`, StableSR's released file, with UNet and structure encoder replaced."""
        if over is None:
            raise ValueError(
                "stablesr: its file also holds autoencoder and text tower: give the released one with --over"
            )
        save_over(over, self.released_state(), folder)

    def parts(self) -> dict[str, Part]:
        unet, encoder = self._policy.unet, self._policy.structure_encoder
        parts = {
            UNET: Part(unet, config_file(unet) | {"spade": _spade(self._policy)}),
            ENCODER: Part(encoder, config_file(encoder)),
        }
        if self.fused is not None:
            parts[FUSED] = Part(self.fused, {"vae": config_file(self.fused.vae), "fusions": self.fused.config})
        return parts

    @classmethod
    def read_parts(cls, folder: Path) -> dict[str, nn.Module]:
        parts = {
            UNET: _read(folder / UNET, lambda spade, **config: spade_unet(config, **spade)),
            ENCODER: read_network(StructureEncoder, folder / ENCODER),
        }
        if (folder / FUSED).is_dir():
            parts[FUSED] = _read(
                folder / FUSED, lambda vae, fusions: FusedVAE(AutoencoderKL.from_config(vae), **fusions)
            )
        return parts

    @classmethod
    def from_parts(cls, **given: Any) -> Self:
        policy = StableSRPolicy(given.pop(UNET), given.pop(ENCODER))
        return cls(policy=policy, fused=given.pop(FUSED, None), **given)

    @classmethod
    def from_released(
        cls,
        base: Path,
        cleaner: Path,
        cfw: Path | None = None,
        *,
        prompt: str = "",
        negative_prompt: str | None = None,
        tokenizer: Path | None = None,
        head_channels: int = 64,
        structure_heads: int = 4,
        settings: StableSRSettings | None = None,
    ) -> Self:
        """The model of the files that users download.

        Args:
            base: StableSR's file, with UNet, structure encoder, autoencoder and OpenCLIP text tower.
            cleaner: a Restormer or an SNR-aware file.
            cfw: StableSR's file of the CFW autoencoder; None to decode by the plain one.
            prompt, negative_prompt: their embeddings are stored; guidance needs the second ("" is allowed).
            tokenizer: folder with CLIP's vocab.json and merges.txt; only the empty prompt needs none.
            head_channels, structure_heads: as `policy_from_released`.
            settings: None for those of the 512 model, with fusion weight 0.5 where there is a CFW file.

        Raises:
            CheckpointError: a file is absent, unreadable or not of the expected layout, or files or settings don't
                fit each other.
            ValueError: a prompt without a tokenizer.
        """
        state = bare(read_state(base), base)
        for prefix in (UNET_PREFIX, STRUCTURE_PREFIX, VAE_PREFIX, text.TEXT_PREFIX):
            if not any(k.startswith(prefix) for k in state):
                raise CheckpointError(
                    f"{base} has no keys {prefix}*, its first ones are {first(state)}; give StableSR's checkpoint as "
                    "it was released"
                )
        tower = text.from_released(part(state, text.TEXT_PREFIX), base)
        embeddings = {"text": text.encode_prompt(tower, prompt, tokenizer)}
        if negative_prompt is not None:
            embeddings["negative_text"] = text.encode_prompt(tower, negative_prompt, tokenizer)
        vae = vae_from_released(part(state, VAE_PREFIX), base)
        policy = policy_from_released(state, base, head_channels=head_channels, structure_heads=structure_heads)
        fused = None if cfw is None else fused_vae_from_released(read_state(cfw), cfw)
        if settings is None:
            settings = StableSRSettings(fusion_weight=0.0 if fused is None else cls.RELEASED_FUSION_WEIGHT)
        try:
            return cls(vae, policy, cleaner_from_released(read_state(cleaner), cleaner), embeddings, fused, settings)
        except ValueError as error:
            raise CheckpointError(f"{base}{'' if cfw is None else f', {cfw}'}: {error}") from error


def _spade(policy: StableSRPolicy) -> dict[str, int]:
    """Arguments of `spade_unet` beside the UNet's."""
    shared = policy.unet.mid_block.resnets[0].spade.shared
    return {"features": shared.in_channels, "hidden": shared.out_channels}


def _scale(vae: AutoencoderKL) -> tuple[int, int]:
    """Channels of the latents, and how often they are halved."""
    return vae.config.latent_channels, len(vae.config.block_out_channels)


def _runs(images: Tensor) -> tuple[Tensor, Tensor]:
    """The first of each run of equal images [B, ...], and which of them each image is, int64 [B]."""
    if images.is_meta or shared():  # without values, or as pieces of one picture, all of them count as different
        return images, torch.arange(len(images), device=images.device)
    begins = torch.ones(len(images), dtype=torch.bool, device=images.device)
    begins[1:] = (images[1:] != images[:-1]).flatten(1).any(1)
    return images[begins], begins.cumsum(0) - 1


def _read(folder: Path, build: Any) -> Any:
    """The network that `build` makes of config.json, with the folder's weights. Raises CheckpointError."""
    config = read_json(folder / "config.json")
    try:
        network = empty(lambda: build(**config))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    load_strict(network, read_state_of(folder), weights_file(folder))
    return network.eval()
