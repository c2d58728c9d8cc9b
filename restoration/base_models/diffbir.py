"""DiffBIR (arXiv 2308.15070): Stable Diffusion steered by a ControlNet that sees the cleaned image's latent.

Built from stock diffusers networks. The ControlNet takes `cat(x_t, condition latent)` and has no network for
a hint image; its residuals are added to the skips of the UNet. `scaled` latents are mode * scaling factor.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner, cleaner_of, config_of
from restoration.base_models.interface import Condition, SamplerSettings
from restoration.base_models.spacing import linspace_schedule
from restoration.checkpoints import CheckpointError, empty, load_strict, read_json, read_state
from restoration.transition import Prediction, Schedule, ddim_schedule, scaled_linear_alphas

KIND = "diffbir"
SETTINGS_FILE = "restorl_model.json"
TEXT_FILE = "text.safetensors"
_NETWORKS = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "controlnet": ControlNetModel}
_LORA_LAYERS = r"to_q|to_k|to_v|to_out\.0|conv1|conv2|conv_in|conv_out"


@dataclass(frozen=True)
class DiffBIRSettings:
    """What the network files don't say.

    Attributes:
        prediction: what the network's output means; DiffBIR v1/v2 epsilon, v2.1 v_prediction with zero SNR.
        trainable: prefixes in the policy's parameter names of what SFT trains.
        lora_layers: regular expression over module names below those prefixes that LoRA attaches to.
    """

    name: str = KIND
    prediction: Prediction = "epsilon"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_timesteps: int = 1000
    zero_terminal_snr: bool = False
    control_scale: float = 1.0
    trainable: tuple[str, ...] = ("controlnet.",)
    lora_layers: str = _LORA_LAYERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "trainable", tuple(self.trainable))
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ValueError(f"prediction={self.prediction!r}: choose epsilon, v_prediction or sample")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise ValueError("prediction='epsilon' is undefined with zero_terminal_snr; use v_prediction")
        if not self.trainable or not set(self.trainable) <= {"controlnet.", "unet."}:
            raise ValueError(f"trainable={self.trainable}: choose from 'controlnet.' and 'unet.'")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"beta_start={self.beta_start}, beta_end={self.beta_end}: 0 < start <= end < 1")
        if self.train_timesteps < 1:
            raise ValueError(f"train_timesteps={self.train_timesteps}: at least 1")


class _NoHint(nn.Module):
    """Stands where a stock ControlNet embeds a hint image; DiffBIR's condition enters with the sample instead."""

    def forward(self, hint: Tensor) -> Tensor:
        return hint.new_zeros(())


def without_hint(controlnet: ControlNetModel) -> ControlNetModel:
    """The same network, its hint embedding replaced by nothing."""
    controlnet.controlnet_cond_embedding = _NoHint()
    return controlnet


class Policy(nn.Module):
    """UNet and ControlNet: what `denoise` runs."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = without_hint(controlnet)

    def controls(self, x_t: Tensor, timestep: Tensor, latent: Tensor, text: Tensor) -> list[Tensor]:
        """The ControlNet's residuals, in the order of the UNet's skips, the middle block's last; unscaled."""
        dtype = self.controlnet.dtype
        skips, middle = self.controlnet(
            torch.cat([x_t, latent], 1).to(dtype), timestep, text.to(dtype), latent.to(dtype), return_dict=False
        )
        return [*skips, middle]

    def forward(
        self, x_t: Tensor, timestep: Tensor, latent: Tensor, text: Tensor, control_scale: float = 1.0
    ) -> Tensor:
        """x_t, latent [B,C,h,w]; timestep [B]; text [B,tokens,width] -> float32 like x_t."""
        dtype = self.unet.dtype
        *skips, middle = (c.to(dtype) * control_scale for c in self.controls(x_t, timestep, latent, text))
        output = self.unet(
            x_t.to(dtype),
            timestep,
            text.to(dtype),
            down_block_additional_residuals=tuple(skips),
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return output.float()


def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Scaled posterior mode, float32 [B,C,h,w], of images [B,3,H,W] in [0, 1]."""
    mode = vae.encode((images * 2 - 1).to(vae.dtype)).latent_dist.mode()
    return mode.float() * vae.config.scaling_factor


def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pixels about [-1, 1], not clamped, float32 [B,3,H,W], of scaled latents."""
    return vae.decode((latents / vae.config.scaling_factor).to(vae.dtype)).sample.float()


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance; scale 1 is the conditional output."""
    return unconditional + scale * (conditional - unconditional)


class DiffBIR:
    """A `BaseModel`. `text` and `negative_text` are embeddings [1, tokens, width]; guidance needs the second."""

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        cleaner: Cleaner,
        text: Tensor,
        negative_text: Tensor | None = None,
        settings: DiffBIRSettings | None = None,
    ) -> None:
        latent, seen = unet.config.in_channels, controlnet.config.in_channels
        if vae.config.latent_channels != latent or seen != 2 * latent:
            raise ValueError(
                f"DiffBIR: VAE with {vae.config.latent_channels} latent channels, UNet with {latent} inputs and "
                f"ControlNet with {seen}: the ControlNet takes twice the latent channels"
            )
        for what, embedding in (("text", text), ("negative_text", negative_text)):
            if embedding is not None and (embedding.ndim != 3 or embedding.shape[0] != 1):
                raise ValueError(f"DiffBIR: {what} has shape {tuple(embedding.shape)}, expected [1, tokens, width]")
        self.settings = settings or DiffBIRSettings()
        self.name = self.settings.name
        self._policy = Policy(unet, controlnet)
        # Convolutions at pixel resolution are up to twice as fast in this layout, on CPU and GPU.
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.cleaner = cleaner.eval().requires_grad_(False)
        self.text, self.negative_text = text.float(), None if negative_text is None else negative_text.float()
        unet_factor = 2 ** (len(unet.config.block_out_channels) - 1)
        self.size_multiple = math.lcm(self.vae_factor * unet_factor, self.cleaner.size_multiple)
        self.alphas: np.ndarray = scaled_linear_alphas(
            self.settings.beta_start,
            self.settings.beta_end,
            self.settings.train_timesteps,
            self.settings.zero_terminal_snr,
        )

    @property
    def vae_factor(self) -> int:
        """Pixels per latent cell, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def policy(self) -> nn.Module:
        return self._policy

    @property
    def trainable_names(self) -> tuple[str, ...]:
        return self.settings.trainable

    @property
    def lora_targets(self) -> str:
        prefixes = "|".join(re.escape(p) for p in self.settings.trainable)
        return rf"(?:{prefixes})(?:.*\.)?(?:{self.settings.lora_layers})"

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

    @torch.no_grad()
    def condition(self, lq: Tensor) -> Condition:
        """lq float32 [B,3,H,W] in [0,1], H and W multiples of `size_multiple`."""
        clean = self.cleaner(lq).float().clamp(0, 1)
        count = lq.shape[0]
        negative = None if self.negative_text is None else self.negative_text.expand(count, -1, -1)
        return Condition(clean, self.encode(clean), self.text.expand(count, -1, -1), negative)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return encode_images(self.vae, images)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        return (decode_latents(self.vae, latents) / 2 + 0.5).clamp(0, 1)

    def start(self, condition: Condition, noise: Tensor) -> Tensor:
        """DiffBIR starts from pure noise."""
        return noise

    def denoise(self, x_t: Tensor, timestep: float | Tensor, condition: Condition, guidance_scale: float) -> Tensor:
        """With a guidance scale other than 1 both branches run as one batch, unconditional first.

        Raises:
            ValueError: guidance without a negative text embedding; a condition without text.
        """
        if condition.text is None:
            raise ValueError("DiffBIR.denoise: the condition has no text embedding; make it with condition()")
        times = torch.as_tensor(timestep, device=x_t.device).expand(x_t.shape[0])
        scale = self.settings.control_scale
        if guidance_scale == 1:
            return self._policy(x_t, times, condition.latent, condition.text, scale)
        if condition.negative_text is None:
            raise ValueError(
                f"DiffBIR.denoise: guidance_scale={guidance_scale} needs a negative text embedding, and this model "
                "stores none; use guidance_scale 1"
            )
        both = self._policy(
            torch.cat([x_t, x_t]),
            torch.cat([times, times]),
            torch.cat([condition.latent, condition.latent]),
            torch.cat([condition.negative_text, condition.text]),
            scale,
        )
        unconditional, conditional = both.chunk(2)
        return guided(unconditional, conditional, guidance_scale)

    def add_noise(self, gt_latent: Tensor, timestep: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and the target of the network's output there; timestep int64 [B], the rest [B,C,h,w]."""
        alpha = torch.from_numpy(self.alphas)[timestep.cpu()].to(gt_latent.device)
        signal, sigma = (v.float().view(-1, 1, 1, 1) for v in (alpha.sqrt(), (1 - alpha).sqrt()))
        x_t = signal * gt_latent + sigma * noise
        if self.settings.prediction == "epsilon":
            return x_t, noise
        return x_t, gt_latent if self.settings.prediction == "sample" else signal * noise - sigma * gt_latent

    def sft_loss(self, gt_latent: Tensor, condition: Condition, timestep: Tensor, noise: Tensor) -> Tensor:
        x_t, target = self.add_noise(gt_latent, timestep, noise)
        output = self.denoise(x_t, timestep, condition, guidance_scale=1.0)
        return (output - target).square().flatten(1).mean(1)

    def to(self, device: torch.device | str) -> DiffBIR:
        for module in (self.vae, self._policy, self.cleaner):
            module.to(device)
        self.text = self.text.to(device)
        self.negative_text = None if self.negative_text is None else self.negative_text.to(device)
        return self

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write vae/, unet/, controlnet/ (diffusers folders), cleaner/, the text embedding and the settings.

        Args:
            dtype: how the weights are stored; they are float32 again when loaded.

        Raises:
            ValueError: LoRA layers are still attached to the policy.
        """
        folder = Path(folder)
        if any(".lora_A." in name for name, _ in self._policy.named_parameters()):
            raise ValueError("DiffBIR.save: the policy carries LoRA layers; merge or remove them first")
        networks = {"vae": self.vae, "unet": self._policy.unet, "controlnet": self._policy.controlnet}
        for part, network in networks.items():
            network.save_config(folder / part)
            _save_state(network.state_dict(), folder / part / "diffusion_pytorch_model.safetensors", dtype)
        (folder / "cleaner").mkdir(parents=True, exist_ok=True)
        (folder / "cleaner" / "config.json").write_text(json.dumps(config_of(self.cleaner), indent=2) + "\n")
        _save_state(self.cleaner.state_dict(), folder / "cleaner" / "model.safetensors", dtype)
        texts = {"text": self.text, "negative_text": self.negative_text}
        _save_state({k: v for k, v in texts.items() if v is not None}, folder / TEXT_FILE, torch.float32)
        settings = {"kind": KIND, **asdict(self.settings)}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> DiffBIR:
        """Read what `save` wrote; weights become float32, whatever they are stored as.

        Raises:
            CheckpointError: a file is absent or unreadable, keys are missing or unexpected, a setting is invalid.
        """
        folder = Path(folder)
        raw = read_json(folder / SETTINGS_FILE)
        raw.pop("kind", None)
        try:
            settings = DiffBIRSettings(**raw)
            cleaner = cleaner_of(read_json(folder / "cleaner" / "config.json"))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder}: invalid setting: {error}") from error
        parts = {name: _load_network(name, folder / name) for name in _NETWORKS}
        cleaner_file = folder / "cleaner" / "model.safetensors"
        load_strict(cleaner, read_state(cleaner_file), cleaner_file)
        texts = read_state(folder / TEXT_FILE)
        if "text" not in texts:
            raise CheckpointError(f"{folder / TEXT_FILE}: no tensor named 'text' ([1, tokens, width])")
        try:
            return cls(**parts, cleaner=cleaner, text=texts["text"], negative_text=texts.get("negative_text"),
                       settings=settings)  # fmt: skip
        except ValueError as error:
            raise CheckpointError(f"{folder}: {error}") from error


def _save_state(state: dict[str, Tensor], file: Path, dtype: torch.dtype) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    stored = {k: v.detach().to("cpu", dtype if v.is_floating_point() else v.dtype) for k, v in state.items()}
    save_file({k: v.contiguous() for k, v in stored.items()}, file, metadata={"format": "pt"})


def _load_network(name: str, folder: Path) -> Any:
    kind = _NETWORKS[name]
    config = read_json(folder / "config.json")
    network = empty(lambda: kind.from_config(config))
    if isinstance(network, ControlNetModel):
        without_hint(network)
    file = folder / "diffusion_pytorch_model.safetensors"
    load_strict(network, read_state(file), file)
    return network.eval()


def build_small(
    vae: AutoencoderKL,
    cleaner: Cleaner,
    *,
    channels: tuple[int, ...] = (40, 80),
    attention: tuple[bool, ...] | None = None,
    layers_per_block: int = 1,
    head_channels: int = 16,
    tokens: int = 4,
    text_width: int = 32,
    settings: DiffBIRSettings | None = None,
    seed: int = 0,
) -> DiffBIR:
    """An untrained small model of the same architecture around a trained VAE and cleaner; all of it trains.

    Args:
        channels: width of each level of UNet and ControlNet, multiples of 8.
        head_channels: width of an attention head; divides the width of each level that has attention.
        attention: which levels have transformer blocks; by default the coarsest (the middle block always has one).
        tokens, text_width: size of the stored text embedding, a fixed random one.
        seed: seeds weights and text embedding.
    """
    attention = attention or tuple(i + 1 == len(channels) for i in range(len(channels)))
    if len(attention) != len(channels):
        raise ValueError(f"attention={attention} needs one entry for each of channels={channels}")
    attending = [c for c, a in zip(channels, attention, strict=True) if a] + [channels[-1]]
    if any(c % head_channels for c in attending) or any(c % 8 for c in channels):
        raise ValueError(f"channels={channels}: multiples of 8, and of head_channels={head_channels} where they attend")
    latent = vae.config.latent_channels
    shared: dict[str, Any] = {
        "block_out_channels": channels,
        "layers_per_block": layers_per_block,
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        # diffusers' attention_head_dim is the number of heads
        "attention_head_dim": tuple(max(1, c // head_channels) for c in channels),
        "cross_attention_dim": text_width,
        "norm_num_groups": 8,
        "use_linear_projection": True,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            in_channels=latent,
            out_channels=latent,
            up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            **shared,
        )
        controlnet = ControlNetModel(in_channels=2 * latent, **shared)
        text = torch.randn(1, tokens, text_width)
    settings = settings or DiffBIRSettings(
        name="diffbir-small", prediction="v_prediction", zero_terminal_snr=True, trainable=("controlnet.", "unet.")
    )
    return DiffBIR(vae, unet.eval(), controlnet.eval(), cleaner, text, settings=settings)
