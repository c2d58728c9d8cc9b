"""What base models share: frozen VAE and cleaner, stored embeddings, a policy that denoises scaled latents."""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner, cleaner_of, config_of
from restoration.base_models.interface import NEGATIVE, Condition, SamplerSettings
from restoration.base_models.networks.diffusers_folder import read_vae
from restoration.base_models.networks.embeddings import PerImage
from restoration.base_models.networks.parts import Part, config_file, save_state, touches
from restoration.base_models.networks.spacing import linspace_schedule
from restoration.checkpoints import CheckpointError, load_strict, read_json, read_state
from restoration.precision import dtype_of
from restoration.transition import Prediction, Schedule, ddim_schedule, scaled_linear_alphas

SETTINGS_FILE = "restorl_model.json"
TEXT_FILE = "text.safetensors"
LORA_LAYERS = r"to_q|to_k|to_v|to_out\.0|conv1|conv2|conv_in|conv_out"


@dataclass(frozen=True)
class ModelSettings:
    """What the network files don't say.

    Attributes:
        trainable: regular expressions that begin the policy's parameter names of what SFT trains.
        lora_layers: regular expression over module names below those that LoRA attaches to.
    """

    name: str = ""
    trainable: tuple[str, ...] = ()
    lora_layers: str = LORA_LAYERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "trainable", tuple(self.trainable))


@dataclass(frozen=True)
class LatentSettings(ModelSettings):
    """
    Attributes:
        prediction: what the network's output means.
        start_timesteps: the chain starts from the cleaned image's latent, noised to these timesteps one after the
            other; empty for pure noise.
    """

    prediction: Prediction = "epsilon"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_timesteps: int = 1000
    zero_terminal_snr: bool = False
    start_timesteps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "start_timesteps", tuple(self.start_timesteps))
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction={self.prediction!r}: choose epsilon, v_prediction or sample")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError("prediction='epsilon' is undefined with zero_terminal_snr; use v_prediction")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"beta_start={self.beta_start}, beta_end={self.beta_end}: 0 < start <= end < 1")
        if self.train_timesteps < 1:
            raise ValueError(f"train_timesteps={self.train_timesteps}: at least 1")
        if not all(0 <= t < self.train_timesteps for t in self.start_timesteps):
            raise ValueError(f"start_timesteps={self.start_timesteps}: each from 0 to {self.train_timesteps - 1}")


def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Scaled posterior mode, float32 [B,C,h,w], of images [B,3,H,W] in [0, 1]."""
    mode = vae.encode((images * 2 - 1).to(dtype_of(vae))).latent_dist.mode()
    return mode.float() * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels about [-1, 1], not clamped, float32 [B,3,H,W], of scaled latents."""
    return vae.decode((latents / vae.config.scaling_factor).to(dtype_of(vae))).sample.float()


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance; scale 1 is the conditional output."""
    return unconditional + scale * (conditional - unconditional)


class LatentModel(ABC):
    """A `BaseModel` but for its chain, its SFT loss, `predict`, and reading and naming its networks.

    Args:
        embeddings: [1, ...] each: "text" and, for guidance, "negative_text"; others as `Condition.others`.
        downsampling: factor of the policy's network between a latent and its coarsest features.
    """

    KIND: ClassVar[str]
    SETTINGS: ClassVar[type[ModelSettings]]
    SAMPLER: ClassVar[SamplerSettings] = SamplerSettings()  # as its authors restore with it
    TEXT: ClassVar[bool] = True  # whether it looks at a text
    NEEDS: ClassVar[tuple[str, ...]] = ()  # other embeddings it can't do without
    per_image: PerImage | None = None
    side_limit: int | None = None  # pixels that neither side of a picture may exceed

    def __init__(
        self,
        vae: AutoencoderKL,
        policy: nn.Module,
        cleaner: Cleaner,
        embeddings: Mapping[str, Tensor],
        settings: ModelSettings,
        downsampling: int,
    ) -> None:
        for what, embedding in embeddings.items():
            if embedding.shape[0] != 1 or (what in ("text", "negative_text") and embedding.ndim != 3):
                expected = "[1, tokens, width]" if embedding.ndim == 3 or "text" in what else "[1, ...]"
                raise ValueError(f"{self.KIND}: {what} has shape {tuple(embedding.shape)}, expected {expected}")
        if not settings.trainable:
            raise ValueError(f"{self.KIND}: trainable={settings.trainable} names no part of the policy")
        names = [name for name, _ in policy.named_parameters()]
        for pattern in settings.trainable:
            if not any(re.match(pattern, name) for name in names):
                raise ValueError(f"{self.KIND}: trainable: {pattern!r} begins no parameter's name, such as {names[0]}")
        self.name = settings.name
        self._policy = policy
        # Convolutions at pixel resolution are up to twice as fast in this layout, on CPU and GPU.
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.cleaner = cleaner.eval().requires_grad_(False)
        # copied: a tensor that still lies in the mapped file dies with the file
        self.embeddings = {name: value.to(torch.float32, copy=True) for name, value in embeddings.items()}
        self.size_multiple = math.lcm(self.vae_factor * downsampling, self.cleaner.size_multiple)
        self.settings = settings

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def sampler(self) -> SamplerSettings:
        return self.SAMPLER

    @property
    def policy(self) -> nn.Module:
        return self._policy

    @property
    def trainable_names(self) -> tuple[str, ...]:
        return self.settings.trainable

    @property
    def lora_targets(self) -> str:
        return rf"(?:{'|'.join(self.settings.trainable)})(?:.*\.)?(?:{self.settings.lora_layers})"

    @property
    @abstractmethod
    def train_timesteps(self) -> int: ...

    @abstractmethod
    def schedule(self, sampler: SamplerSettings) -> Schedule: ...

    @torch.no_grad()
    def condition(self, lq: Tensor, image_ids: Sequence[str] = ()) -> Condition:
        """lq float32 [B,3,H,W] in [0,1], H and W multiples of `size_multiple`.

        Raises:
            ValueError: an embedding the model needs is neither stored nor given for each picture.
            CheckpointError: `per_image` has none for a picture.
        """
        clean = self.cleaner(lq).float().clamp(0, 1)
        stored = {name: value.expand(len(lq), *value.shape[1:]) for name, value in self.embeddings.items()}
        if self.per_image is not None and image_ids:
            stored |= {name: value.to(lq.device) for name, value in self.per_image(image_ids).items()}
        if missing := [name for name in self.NEEDS if name not in stored]:
            raise ValueError(
                f"{self.KIND}: no embedding {', '.join(missing)} (there are {', '.join(stored)}); give it to `restorl "
                "convert` for all pictures, or a folder of one file a picture as data.embeddings or --embeddings"
            )
        text, negative = (stored.pop(name, None) for name in ("text", NEGATIVE + "text"))
        return Condition(clean, self.encode_seen(clean), text, negative, stored)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return encode_images(self.vae, images)

    @torch.no_grad()
    def decode(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        return (decode_latents(self.vae, latents) / 2 + 0.5).clamp(0, 1)

    def encode_seen(self, images: Tensor) -> Tensor:
        """The condition's latents, of cleaned images."""
        return self.encode(images)

    @abstractmethod
    def start(self, condition: Condition, noise: Tensor) -> Tensor:
        """The chain's first state for standard normal `noise` of the latent's shape."""

    @abstractmethod
    def predict(self, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The policy's output, float32 like x_t; timestep [B]."""

    def denoise(self, x_t: Tensor, timestep: float | Tensor, condition: Condition, guidance_scale: float) -> Tensor:
        """With a guidance scale other than 1 both branches run as one batch, unconditional first.

        Raises:
            ValueError: guidance without a negative text embedding; a condition without text.
        """
        if condition.text is None and "text" in self.embeddings:
            raise ValueError(f"{self.KIND}: the condition has no text embedding; make it with condition()")
        if isinstance(timestep, Tensor):
            times = timestep.to(x_t.device).expand(x_t.shape[0])
        else:  # filled on the device: a copy from the host would wait for all that runs there
            times = torch.full((x_t.shape[0],), timestep, device=x_t.device)
        if guidance_scale == 1:
            return self.predict(x_t, times, condition)
        both = Condition.cat([condition.unconditional, condition])
        unconditional, conditional = self.predict(torch.cat([x_t, x_t]), torch.cat([times, times]), both).chunk(2)
        return guided(unconditional, conditional, guidance_scale)

    @abstractmethod
    def sft_loss(self, gt_latent: Tensor, condition: Condition, timestep: Tensor, noise: Tensor) -> Tensor:
        """Float32 [B]; timestep int64 [B], noise like gt_latent."""

    def to(self, device: torch.device | str) -> Self:
        for module in (self.vae, self._policy, self.cleaner):
            module.to(device)
        self.embeddings = {name: value.to(device) for name, value in self.embeddings.items()}
        return self

    @abstractmethod
    def parts(self) -> dict[str, Part]:
        """The networks by their folders, but for the cleaner; "vae" only where it isn\'t a stock one."""

    @classmethod
    @abstractmethod
    def read_parts(cls, folder: Path) -> dict[str, nn.Module]:
        """The networks that `parts` describes, arguments of `from_parts`. Raises CheckpointError."""

    @classmethod
    def read_autoencoder(cls, folder: Path) -> AutoencoderKL:
        """The autoencoder of a model folder. Raises CheckpointError."""
        return read_vae(folder / "vae")

    @classmethod
    def from_parts(cls, **given: Any) -> Self:
        """The model of `vae`, `cleaner`, `embeddings`, `settings` and what `read_parts` gave, each by its name.

        Raises:
            ValueError: they don't fit each other.
        """
        return cls(**given)

    def refuse_lora(self) -> None:
        """Raises ValueError while the LoRA of a training is attached to the policy."""
        if any(".lora_A.default." in name for name, _ in self._policy.named_parameters()):
            raise ValueError(f"{self.KIND}: the policy carries LoRA layers; merge or remove them before saving")

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write vae/ and the networks of `parts` (diffusers folders), cleaner/, the embeddings and the settings.

        Args:
            dtype: how the weights are stored; they are float32 again when loaded.

        Raises:
            ValueError: the LoRA of a training is still attached to the policy.
        """
        folder = Path(folder)
        self.refuse_lora()
        for name, part in {"vae": Part(self.vae, config_file(self.vae)), **self.parts()}.items():
            part.save(folder / name, dtype)
        save_state(self.cleaner.state_dict(), folder / "cleaner" / "model.safetensors", dtype)
        (folder / "cleaner" / "config.json").write_text(json.dumps(config_of(self.cleaner), indent=2) + "\n")
        if self.embeddings:
            save_state(self.embeddings, folder / TEXT_FILE, torch.float32)
        (folder / SETTINGS_FILE).write_text(json.dumps({"kind": self.KIND, **asdict(self.settings)}, indent=2) + "\n")

    def export(self, folder: Path, trained: Collection[str], over: Path | None = None) -> None:
        """Write what its authors' own program loads, in their layout and float32: here a diffusers folder a network.

        Args:
            trained: the policy's parameters that differ from the released ones; other networks are left out.
            over: the released file, for layouts whose file holds more than the policy.

        Raises:
            ValueError: the LoRA of a training is still attached to the policy; `over` is needed, or not.
            CheckpointError: `over` is another model's.
        """
        self.refuse_lora()
        self.refuse_over(over)
        for name, part in self.parts().items():
            if touches(name, trained):
                part.save(folder / name)

    def refuse_over(self, over: Path | None) -> None:
        """Raises ValueError for an `over` that nothing needs."""
        if over is not None:
            raise ValueError(f"{self.KIND}: nothing of {over} is needed beside what was trained; leave it out")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote; weights become float32, whatever they are stored as.

        Raises:
            CheckpointError: a file is absent or unreadable, keys are missing or unexpected, a setting is invalid.
        """
        folder = Path(folder)
        raw = read_json(folder / SETTINGS_FILE)
        raw.pop("kind", None)
        try:
            settings = cls.SETTINGS(**raw)
            cleaner = cleaner_of(read_json(folder / "cleaner" / "config.json"))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: invalid setting: {error}") from error
        networks = cls.read_parts(folder)
        cleaner_file = folder / "cleaner" / "model.safetensors"
        load_strict(cleaner, read_state(cleaner_file), cleaner_file)
        embeddings = read_state(folder / TEXT_FILE) if cls.TEXT or (folder / TEXT_FILE).is_file() else {}
        if cls.TEXT and "text" not in embeddings:
            raise CheckpointError(f"{folder / TEXT_FILE}: no tensor named 'text' ([1, tokens, width])")
        try:
            vae = cls.read_autoencoder(folder)
            return cls.from_parts(vae=vae, cleaner=cleaner, embeddings=embeddings, settings=settings, **networks)
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from error


class LatentDiffusion(LatentModel):
    """A `LatentModel` that denoises step by step, along DDPM's noise schedule."""

    SETTINGS: ClassVar[type[LatentSettings]]
    settings: LatentSettings

    _alphas = torch.empty(0, device="meta")  # `alphas` where they were last needed

    @cached_property
    def alphas(self) -> np.ndarray:
        """ᾱ by timestep, float64."""
        of = self.settings
        return scaled_linear_alphas(of.beta_start, of.beta_end, of.train_timesteps, of.zero_terminal_snr)

    def _alphas_on(self, device: torch.device) -> Tensor:
        if self._alphas.device != device:
            self._alphas = torch.from_numpy(self.alphas).to(device)
        return self._alphas

    @property
    def train_timesteps(self) -> int:
        return self.settings.train_timesteps

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        """The chain; spacing linspace with eta 1 is DiffBIR's own sampler (ancestral DDPM on respaced steps)."""
        if sampler.spacing == "linspace":
            return linspace_schedule(self.alphas, sampler.steps, sampler.eta, self.settings.prediction)
        return ddim_schedule(
            self.alphas,
            sampler.steps,
            sampler.eta,
            self.settings.prediction,
            sampler.spacing,  # type: ignore[arg-type]
            sampler.steps_offset,
        )

    def start(self, condition: Condition, noise: Tensor) -> Tensor:
        """The cleaned image's latent, noised to each of `start_timesteps` with noise of its own; else pure noise."""
        if not self.settings.start_timesteps:
            return noise
        signal, variance = 1.0, 0.0
        for t in self.settings.start_timesteps:
            alpha = float(self.alphas[t])
            signal, variance = signal * alpha**0.5, variance * alpha + 1 - alpha
        return signal * condition.latent + variance**0.5 * noise

    def add_noise(self, gt_latent: Tensor, timestep: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and the target of the network's output there; timestep int64 [B], the rest [B,C,h,w]."""
        alpha = self._alphas_on(gt_latent.device)[timestep.to(gt_latent.device)]
        signal, sigma = (v.float().view(-1, 1, 1, 1) for v in (alpha.sqrt(), (1 - alpha).sqrt()))
        x_t = signal * gt_latent + sigma * noise
        if self.settings.prediction == "epsilon":
            return x_t, noise
        return x_t, gt_latent if self.settings.prediction == "sample" else signal * noise - sigma * gt_latent

    def sft_loss(self, gt_latent: Tensor, condition: Condition, timestep: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the network's output, float32 [B]."""
        x_t, target = self.add_noise(gt_latent, timestep, noise)
        output = self.denoise(x_t, timestep, condition, guidance_scale=1.0)
        return (output - target).square().flatten(1).mean(1)
