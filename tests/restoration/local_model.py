"""A base model of convolutions only: what it makes of a place depends on its neighbourhood alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from restoration.base_models.interface import Condition, SamplerSettings
from restoration.transition import Schedule, ddim_schedule, one_step_schedule, scaled_linear_alphas
from tests.restoration.tiny_model import TinyModel

CELL = 4  # pixels per latent cell


class LocalModel(TinyModel):
    """Latents are 4 x 4 pixels folded into a cell. The denoiser looks 1 cell around it, and there the condition looks
    1 cell further; so does the decoder, 1 cell. The chain starts from the condition's latent, noised.
    """

    name = "local"

    def __init__(self, one_step: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.cleaner = nn.Conv2d(3, 3, 3, padding=1)
            self.vae = nn.Conv2d(48, 4, 1), nn.Conv2d(4, 48, 3, padding=1)
            self.policy = nn.Conv2d(4 + 4 + 3, 4, 3, padding=1)
        self.one_step = one_step

    def schedule(self, sampler: SamplerSettings) -> Schedule:
        if self.one_step:
            return one_step_schedule(999, 1.0, -1.0, 0.05)
        return ddim_schedule(scaled_linear_alphas(), sampler.steps, sampler.eta, "epsilon")

    def condition(self, lq: Tensor, image_ids: Sequence[str] = ()) -> Condition:
        self.seen.append(tuple(lq.shape))
        clean = torch.sigmoid(self.cleaner(lq))
        return Condition(clean, self.encode(clean), others={"small": F.avg_pool2d(clean, CELL)})

    def encode(self, images: Tensor) -> Tensor:
        return self.vae[0](F.pixel_unshuffle(images, CELL))

    def decode(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        return torch.sigmoid(F.pixel_shuffle(self.vae[1](latents), CELL))

    def start(self, condition: Condition, noise: Tensor) -> Tensor:
        return condition.latent if self.one_step else 0.1 * condition.latent + noise

    def denoise(self, x_t: Tensor, timestep: float | Tensor, condition: Condition, guidance_scale: float) -> Tensor:
        return torch.tanh(self.policy(torch.cat([x_t, condition.latent, condition.others["small"]], 1)))
