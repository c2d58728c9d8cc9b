"""What a base model must offer to be rolled out, trained and published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from restoration.base_models.networks.embeddings import PerImage
from restoration.colour import COLOUR_FIXES, ColourFix
from restoration.transition import Schedule


@dataclass(frozen=True)
class SamplerSettings:
    """How a chain visits the training timesteps and how its decoded end is finished.

    Attributes:
        eta: the noise of DDIM; 1 is DDPM.
        noise_level: of the SDE that flow models walk (Flow-GRPO's a).
        sigma: of one-step models, the policy's deviation around the predicted latent, which restoring leaves out.
        colour_fix: none, adain or wavelet: colours taken from the cleaner's output (`restoration.colour`), also
            in the images that are scored, so that a reward can't be bought with a colour cast.
    """

    steps: int = 6
    eta: float = 1.0
    spacing: str = "trailing"
    steps_offset: int = 0
    guidance_scale: float = 1.0
    colour_fix: ColourFix = "none"
    noise_level: float = 0.7
    sigma: float = 0.05

    def __post_init__(self) -> None:
        if self.spacing not in ("leading", "trailing", "linspace"):
            raise ValueError(f"sampler.spacing={self.spacing!r}: choose leading, trailing or linspace")
        if not 0 < self.eta <= 1:
            raise ValueError(f"sampler.eta={self.eta}: a policy needs noise in its steps; choose 0 < eta <= 1")
        for name in ("noise_level", "sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"sampler.{name}={getattr(self, name)}: a policy needs noise in its steps; above 0")
        if self.steps_offset < 0:
            raise ValueError(f"sampler.steps_offset={self.steps_offset}: 0 or above")
        if self.steps < 1:
            raise ValueError(f"sampler.steps={self.steps}: at least 1")
        if self.colour_fix not in COLOUR_FIXES:
            raise ValueError(f"sampler.colour_fix={self.colour_fix!r}: choose {', '.join(COLOUR_FIXES)}")


NEGATIVE = "negative_"


@dataclass(frozen=True)
class Condition:
    """What the denoiser sees of the LQ images; every tensor has the batch first.

    Attributes:
        clean: output of the cleaner, float32 [B, 3, H, W] in [0, 1].
        latent: its scaled VAE latent [B, C, h, w].
        text: text embedding [B, tokens, width], or None for a model without text.
        negative_text: embedding of the unconditional branch for guidance, or None.
        others: what else a model looks at, by its own names; "negative_X" takes the place of "X" in the
            unconditional branch.
    """

    clean: Tensor
    latent: Tensor
    text: Tensor | None = None
    negative_text: Tensor | None = None
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, f: Callable[[Tensor], Tensor]) -> Condition:
        """The condition with `f` applied to each tensor (indexing, repeating, moving)."""
        text, negative = (None if v is None else f(v) for v in (self.text, self.negative_text))
        return Condition(f(self.clean), f(self.latent), text, negative, {k: f(v) for k, v in self.others.items()})

    def __getitem__(self, index: Tensor | slice) -> Condition:
        return self.map(lambda v: v[index])

    def split(self, size: int) -> list[Condition]:
        """Parts of `size` images, the last of what is left."""
        return [self[i : i + size] for i in range(0, len(self.latent), size)]

    def repeat_interleave(self, times: int) -> Condition:
        return self.map(lambda v: v.repeat_interleave(times, dim=0))

    @staticmethod
    def cat(parts: Sequence[Condition]) -> Condition:
        """Conditions of one model, one batch after the other."""

        def joined(of: Callable[[Condition], Tensor | None]) -> Tensor | None:
            found = [v for v in map(of, parts) if v is not None]
            return torch.cat(found) if found else None

        others = {name: torch.cat([p.others[name] for p in parts]) for name in parts[0].others}
        return Condition(
            torch.cat([p.clean for p in parts]),
            torch.cat([p.latent for p in parts]),
            joined(lambda p: p.text),
            joined(lambda p: p.negative_text),
            others,
        )

    @property
    def unconditional(self) -> Condition:
        """What guidance leads away from.

        Raises:
            ValueError: there is no negative text embedding.
        """
        if self.negative_text is None:
            raise ValueError(
                "guidance needs a negative text embedding, and this model stores none; use guidance_scale 1"
            )
        others = {k: self.others.get(NEGATIVE + k, v) for k, v in self.others.items()}
        return Condition(self.clean, self.latent, self.negative_text, self.negative_text, others)


@runtime_checkable
class BaseModel(Protocol):
    """A diffusion restoration model. Images are float32 [B, 3, H, W] in [0, 1], latents scaled to unit deviation.

    `policy` holds the networks that `denoise` runs; the part of it that SFT trains is named by
    `trainable_names`, and only that part, or a LoRA at `lora_targets`, is ever trained.
    """

    name: str
    size_multiple: int  # H and W must be multiples of it
    per_image: PerImage | None  # embeddings of single pictures, found by their ids

    @property
    def sampler(self) -> SamplerSettings:
        """How its authors restore with it."""
        ...

    @property
    def policy(self) -> nn.Module: ...

    @property
    def cleaner(self) -> nn.Module | None:
        """What makes the clean condition, [B, 3, H, W] -> the same, not clamped; None for a model without."""
        ...

    @property
    def trainable_names(self) -> tuple[str, ...]:
        """Regular expressions that begin `policy`'s names of the parameters that SFT trains."""
        ...

    @property
    def lora_targets(self) -> str:
        """Regular expression over module names in `policy` that LoRA attaches to."""
        ...

    def schedule(self, sampler: SamplerSettings) -> Schedule: ...

    def condition(self, lq: Tensor, image_ids: Sequence[str] = ()) -> Condition:
        """Clean condition, its latent and the text; no gradient. The ids matter with embeddings of single pictures."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Scaled latents (posterior mode); no gradient."""
        ...

    def decode(self, latents: Tensor, condition: Condition | None = None) -> Tensor:
        """Images, clamped to [0, 1]; no gradient.

        Args:
            condition: what the latents were restored from, which some decoders also look at; None for images
                that were only encoded.
        """
        ...

    def start(self, condition: Condition, noise: Tensor) -> Tensor:
        """x_T for standard normal `noise` of the latent's shape."""
        ...

    def denoise(self, x_t: Tensor, timestep: float | Tensor, condition: Condition, guidance_scale: float) -> Tensor:
        """The network's output (epsilon, v or sample) like x_t; float32. timestep: one number, or [B]."""
        ...

    def sft_loss(self, gt_latent: Tensor, condition: Condition, timestep: Tensor, noise: Tensor) -> Tensor:
        """The model's own SFT loss L_diff per sample, float32 [B]. timestep: int64 [B]; noise like gt_latent."""
        ...

    @property
    def train_timesteps(self) -> int: ...

    def to(self, device: torch.device | str) -> BaseModel: ...

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """A folder, weights stored as `dtype`, that `restoration.base_models.load` reads again."""
        ...
