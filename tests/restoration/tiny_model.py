"""A base model of a few numbers for tests: latents are 4 x 4 means, the network pulls towards the condition."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restoration.base_models.interface import Condition, SamplerSettings
from restoration.transition import Schedule, ddim_schedule, scaled_linear_alphas


class TinyModel:
    """Implements BaseModel; its chain ends in the condition's latent brightened by `gain`, plus `noise` of x_t."""

    name = "tiny"
    size_multiple = 8
    sampler = SamplerSettings()
    per_image = None
    train_timesteps = 1000
    trainable_names = ("",)
    cleaner = None
    lora_targets = ".*"

    def __init__(self, gain: float = 1.0, noise: float = 0.0) -> None:
        self.policy: nn.Module = nn.Linear(1, 1)
        self.gain, self.noise = gain, noise
        self.seen: list[tuple[int, ...]] = []

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        return ddim_schedule(scaled_linear_alphas(), sampler.steps, sampler.eta, "sample")

    def condition(self, lq: Tensor, image_ids: Sequence[str] = ()) -> Condition:
        self.seen.append(tuple(lq.shape))
        return Condition(clean=lq, latent=self.encode(lq))

    def encode(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, 4)

    def decode(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        return F.interpolate(latents, scale_factor=4, mode="nearest").clamp(0, 1)

    def start(self, condition: Condition, noise: Tensor) -> Tensor:
        return noise

    def denoise(self, x_t: Tensor, timestep: float | Tensor, condition: Condition, guidance_scale: float) -> Tensor:
        return condition.latent * self.gain + self.noise * x_t

    def sft_loss(self, gt_latent: Tensor, condition: Condition, timestep: Tensor, noise: Tensor) -> Tensor:
        return torch.zeros(len(gt_latent))

    def to(self, device: torch.device | str) -> TinyModel:
        return self

    def save(self, folder: Path) -> None:
        raise AssertionError("a rollout saves no model")
