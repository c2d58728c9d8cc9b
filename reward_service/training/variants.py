"""Damaged versions of a clean crop, as the training set draws them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from restoration.base_models import load, sampler_of
from restoration.degradations import KINDS as TASKS
from restoration.restore import sample
from reward_service.training.distortions import DISTORTIONS, distort

RESTORERS = tuple(kind for kind in DISTORTIONS if kind not in TASKS)
# What a policy tries on its own outputs when a reward lets it.
TRICKS = ("sharpen", "resharpen", "smooth", "saturation", "brightness", "contrast", "cast")
# Seconds in a mixture: what a restorer adds to what it left over.
AFTER = ("smooth", "sharpen", "resharpen", "latent_noise", "warp", "noise", "jpeg", "saturation", "ringing", "cast")


class Variants:
    """Draws versions; with a base model, also what it restores, which is what the scorer will have to judge.

    Args:
        base: folder of a base model (`restoration.base_models.load`).
        kinds: degradations that it restores.
        steps: numbers of denoising steps, of which each group takes one; none: those the model restores with.
    """

    def __init__(
        self, base: Path | None = None, kinds: tuple[str, ...] = TASKS, steps: tuple[int, ...] | None = None
    ) -> None:
        self.model, self.kinds = None if base is None else load(base), kinds
        if self.model is not None:
            assert base is not None
            own = sampler_of(base, self.model)
            self.samplers = [replace(own, steps=n) for n in steps or (own.steps,)]

    @torch.no_grad()
    def restored(self, clean: np.ndarray, severity: float, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """`count` rollouts of one damaged crop, as GRPO's groups hold them."""
        assert self.model is not None
        lq = distort(clean, str(rng.choice(self.kinds)), severity, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        sampler = self.samplers[int(rng.integers(len(self.samplers)))]
        return _images(sample(self.model, _tensor([lq] * count), sampler, generator))

    @torch.no_grad()
    def toward_clean(self, images: list[np.ndarray], clean: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Decoded mixtures of latents: from each image a random part of the way to the clean one."""
        assert self.model is not None
        latents = self.model.encode(_tensor([clean, *images]))
        way = torch.from_numpy(rng.uniform(0, 1, (len(images), 1, 1, 1)).astype(np.float32))
        return _images(self.model.decode(torch.lerp(latents[1:], latents[:1], way)))

    @torch.no_grad()
    def decoded(self, clean: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
        """The clean crop through the VAE, its latent disturbed by `spread` (latents have unit deviation)."""
        assert self.model is not None
        latent = self.model.encode(_tensor([clean]))
        noise = torch.from_numpy(rng.normal(size=latent.shape).astype(np.float32))
        return _images(self.model.decode(latent + spread * noise))[0]

    def one(self, clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        severity = float(rng.uniform(0.02, 1) ** 1.5)  # more mild ones: that is where outputs of restorers lie
        case = rng.random()
        if case < 0.35:
            return distort(clean, str(rng.choice(TASKS)), severity, rng)
        if case < 0.65:
            return distort(clean, str(rng.choice(RESTORERS)), severity, rng)
        if case < 0.8:
            return distort(clean, f"{rng.choice(TASKS)}+{rng.choice(AFTER)}", severity * 0.6 + 0.01, rng)
        if case < 0.9:
            return distort(clean, f"{rng.choice(RESTORERS)}+{rng.choice(AFTER)}", severity, rng)
        return self.half_restored(clean, severity, rng)

    def half_restored(self, clean: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
        """A blend of a damaged crop and a softened clean one: damage removed in part, detail lost."""
        damaged = distort(clean, str(rng.choice(TASKS)), float(rng.uniform(0.1, 1)), rng)
        soft = cv2.GaussianBlur(clean, (0, 0), 0.4 + severity)
        blend = soft + rng.uniform(0, 0.5) * (damaged - soft)
        return np.asarray((np.clip(blend, 0, 1) * 255).round() / 255, dtype=np.float32)

    def draw(self, clean: np.ndarray, count: int, rng: np.random.Generator, rollouts: int = 0) -> list[np.ndarray]:
        """`count` versions of the float32 [H, W, 3] crop in [0, 1], and with a base model what it makes: some near
        the clean crop, some of the tricks on an output, and, last, `rollouts` of one damaged crop."""
        # Two kinds at two or three severities each: pairs that differ in strength only, as a policy's group does.
        versions: list[np.ndarray] = []
        for kind, times in ((rng.choice(TASKS), 3), (rng.choice([*TASKS, *RESTORERS]), 2)):
            severities = rng.uniform(0.02, 1, times)
            versions += [distort(clean, str(kind), float(s), rng) for s in severities]
        versions = (versions + [self.one(clean, rng) for _ in range(max(0, count - len(versions)))])[:count]
        if not rollouts:
            return versions
        group = self.restored(clean, float(rng.uniform(0.2, 1)), rollouts, rng)
        spread = float(rng.choice([0.0, rng.uniform(0, 0.6)]))
        near = [*self.toward_clean(group[:2], clean, rng), self.decoded(clean, spread, rng)]
        tricks = [distort(group[0], str(kind), float(rng.uniform(0.02, 0.6)), rng) for kind in rng.choice(TRICKS, 3)]
        return [*versions, *near, *tricks, *group]


def _tensor(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _images(x: torch.Tensor) -> list[np.ndarray]:
    """[B, 3, H, W] -> float32 [H, W, 3] each, on the 8-bit grid."""
    pixels = (x.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().numpy().astype(np.float32) / np.float32(255)
    return list(pixels)
