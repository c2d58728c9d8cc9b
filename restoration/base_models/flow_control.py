"""What flow-matching transformers with a ControlNet share: Stable Diffusion 3 (`flow_sd3`) and Flux (`flow_flux`).

x_σ = (1-σ) x_0 + σ noise; the network predicts v = noise - x_0 and is told 1000 σ. Chains walk the SDE of
Flow-GRPO (method.md 2), whose marginals are those of the noiseless chain that diffusers samples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner, cleaner_from_released
from restoration.base_models.interface import NEGATIVE, Condition, SamplerSettings
from restoration.base_models.latent import (
    LatentModel,
    ModelSettings,
    decode_latents,
    encode_images,
)
from restoration.base_models.networks.diffusers_folder import read_network, read_vae
from restoration.base_models.networks.parts import Part, config_file
from restoration.base_models.networks.sdxl import POOLED
from restoration.checkpoints import CheckpointError, read_state
from restoration.transition import Schedule, flow_schedule

TOLD = 1000.0  # what the networks are told is this many times σ, however fine the training's grid is
LORA_LAYERS = r"to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|proj|proj_mlp|proj_out|net\.2|(?:controlnet_)?x_embedder"


@dataclass(frozen=True)
class FlowSettings(ModelSettings):
    """
    Attributes:
        train_timesteps: steps of the grid that SFT draws its σ from.
        shift: every σ becomes shift σ / (1 + (shift - 1) σ), in chains and in SFT; above 1 noisier. It is fixed:
            diffusers' dynamic shifting, by image size, is not there; its mu is the shift e^mu.
        control_scale: factor of the ControlNet's residuals.
    """

    trainable: tuple[str, ...] = (r"controlnet\.",)
    lora_layers: str = LORA_LAYERS
    train_timesteps: int = 1000
    shift: float = 3.0
    control_scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_timesteps < 1:
            raise ValueError(f"train_timesteps={self.train_timesteps}: at least 1")
        if not 0 < self.shift < float("inf"):
            raise ValueError(f"shift={self.shift}: a finite number above 0")


def shifted(sigma: Any, shift: float) -> Any:
    """shift σ / (1 + (shift - 1) σ) of σ in [0, 1], a number, array or tensor; exactly 1 at σ = 1."""
    return sigma / (sigma + (1 - sigma) / shift)


def flow_sigmas(steps: int, shift: float, spacing: str, train_timesteps: int = 1000) -> list[float]:
    """Decreasing σ of a chain, `steps` + 1 of them from 1 to 0, equal to FlowMatchEulerDiscreteScheduler's.

    Args:
        spacing: "trailing" spaces them evenly from 1 to 1/steps before the shift, as diffusers' Flux pipelines do;
            "linspace" from 1 to the least shifted σ of training, as those of Stable Diffusion 3 do.

    Raises:
        ValueError: another spacing; steps outside [1, train_timesteps].
    """
    if not 1 <= steps <= train_timesteps:
        raise ValueError(f"steps={steps} must lie between 1 and the {train_timesteps} training steps")
    if spacing not in ("trailing", "linspace"):
        raise ValueError(f"sampler.spacing={spacing!r}: flow models take trailing or linspace")
    last = 1 / steps if spacing == "trailing" else shifted(1 / train_timesteps, shift)
    return [*map(float, shifted(np.linspace(1.0, last, steps), shift)), 0.0]


class Networks(nn.Module):
    """Transformer and ControlNet: what `denoise` runs."""

    def __init__(self, transformer: Any, controlnet: Any) -> None:
        super().__init__()
        self.transformer, self.controlnet = transformer, controlnet


class FlowControl(LatentModel):
    """A `BaseModel` but for running its networks, which are diffusers' own.

    The text is stored, never encoded here (its T5 alone has 4.7 billion parameters): embeddings "text"
    [1, tokens, width] and "pooled" [1, width], for guidance also "negative_text" and "negative_pooled", as the
    `encode_prompt` of the model's pipeline in diffusers gives them.
    """

    TRANSFORMER: ClassVar[Any]
    CONTROLNET: ClassVar[Any]
    NETWORKS: ClassVar[type[Networks]]
    SETTINGS: ClassVar[type[FlowSettings]]
    settings: FlowSettings
    _policy: Any

    def __init__(
        self,
        vae: AutoencoderKL,
        transformer: Any,
        controlnet: Any,
        cleaner: Cleaner,
        embeddings: Mapping[str, Tensor],
        settings: FlowSettings | None = None,
    ) -> None:
        """`embeddings` as the class describes.

        Raises:
            ValueError: networks, embeddings or settings that don't fit each other.
        """
        settings = settings or self.SETTINGS()
        self._check_text(transformer.config, embeddings)
        if transformer.inner_dim != controlnet.inner_dim:
            raise ValueError(
                f"{self.KIND}: transformer of width {transformer.inner_dim} and ControlNet of {controlnet.inner_dim}: "
                "must be equal, the residuals of one are added to the other"
            )
        downsampling = self.check(vae.config, transformer.config, controlnet.config, settings)
        super().__init__(vae, self.NETWORKS(transformer, controlnet), cleaner, embeddings, settings, downsampling)
        # scaled latents are (z - shift factor) * scaling factor of the encoder's z, LatentModel's without the shift
        self.offset = (vae.config.shift_factor or 0.0) * vae.config.scaling_factor

    @classmethod
    @abstractmethod
    def check(cls, vae: Any, transformer: Any, controlnet: Any, settings: Any) -> int:
        """Side in latent cells of the patches that the networks, given by their configs, see.

        Raises:
            ValueError: what doesn't fit or is not supported.
        """

    def _check_text(self, config: Any, embeddings: Mapping[str, Tensor]) -> None:
        prefixes = ("", NEGATIVE) if {NEGATIVE + "text", NEGATIVE + POOLED} & embeddings.keys() else ("",)
        wanted = [prefix + name for prefix in prefixes for name in ("text", POOLED)]
        if missing := [name for name in wanted if name not in embeddings]:
            raise ValueError(f"{self.KIND}: no embedding {', '.join(missing)}; there are {', '.join(embeddings)}")
        for name in wanted:
            width = config.pooled_projection_dim if name.endswith(POOLED) else config.joint_attention_dim
            expected = f"[1, {width}]" if name.endswith(POOLED) else f"[1, tokens, {width}]"
            shape = tuple(embeddings[name].shape)
            if len(shape) != expected.count(",") + 1 or shape[-1] != width:
                raise ValueError(f"{self.KIND}: {name} has shape {shape}, expected {expected}")

    @property
    def sampler(self) -> SamplerSettings:
        """Its authors' guidance needs negative embeddings; without them there is none."""
        guided = NEGATIVE + "text" in self.embeddings
        return self.SAMPLER if guided else replace(self.SAMPLER, guidance_scale=1.0)

    @property
    def train_timesteps(self) -> int:
        return self.settings.train_timesteps

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        """The flow SDE; `sampler.spacing` as `flow_sigmas`, eta and steps_offset have no meaning here."""
        settings = self.settings
        sigmas = flow_sigmas(sampler.steps, settings.shift, sampler.spacing, settings.train_timesteps)
        return flow_schedule(sigmas, sampler.noise_level)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return encode_images(self.vae, images) - self.offset

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        return (decode_latents(self.vae, latents + self.offset) / 2 + 0.5).clamp(0, 1)

    def start(self, condition: Condition, noise: Tensor) -> Tensor:
        """The noise."""
        return noise

    def sigma(self, timestep: Tensor) -> Tensor:
        """σ in (0, 1], float32 [B], of the training's timesteps, int64 [B] in [0, train_timesteps)."""
        return shifted((timestep.float() + 1) / self.settings.train_timesteps, self.settings.shift)  # type: ignore[no-any-return]

    def sft_loss(self, gt_latent: Tensor, condition: Condition, timestep: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of v, float32 [B], each σ of the grid weighing the same before the shift."""
        sigma = self.sigma(timestep).to(gt_latent.device)
        part = sigma.view(-1, 1, 1, 1)
        x_t = (1 - part) * gt_latent + part * noise
        output = self.denoise(x_t, TOLD * sigma, condition, guidance_scale=1.0)
        return (output - (noise - gt_latent)).square().flatten(1).mean(1)

    def parts(self) -> dict[str, Part]:
        networks = {"transformer": self._policy.transformer, "controlnet": self._policy.controlnet}
        return {name: Part(network, config_file(network)) for name, network in networks.items()}

    @classmethod
    def read_parts(cls, folder: Path) -> dict[str, nn.Module]:
        kinds = {"transformer": cls.TRANSFORMER, "controlnet": cls.CONTROLNET}
        return {name: read_network(kind, folder / name) for name, kind in kinds.items()}

    @classmethod
    def from_released(
        cls,
        base: Path,
        checkpoint: Path,
        cleaner: Path,
        *,
        embeddings: Path,
        settings: FlowSettings | None = None,
    ) -> Self:
        """The model of the files that users download; weights may lie in shards.

        Args:
            base: diffusers folder with transformer/ and vae/.
            checkpoint: folder of a ControlNet in diffusers' layout.
            cleaner: a Restormer or an SNR-aware file.
            embeddings: safetensors file of the text, as the class describes; no text encoder is read.
            settings: None for the model's own.

        Raises:
            CheckpointError: a file is absent, unreadable or not of the expected layout.
        """
        try:
            return cls(
                read_vae(base),
                read_network(cls.TRANSFORMER, base / "transformer"),
                read_network(cls.CONTROLNET, checkpoint),
                cleaner_from_released(read_state(cleaner), cleaner),
                read_state(embeddings),
                settings,
            )
        except ValueError as error:
            raise CheckpointError(f"{base}, {checkpoint}: {error}") from error
