"""Damaged versions of a clean crop, as the training set draws them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from restoration.degradations import KINDS as TASKS
from reward_service.training.distortions import DISTORTIONS, distort

RESTORERS = tuple(kind for kind in DISTORTIONS if kind not in TASKS)
# Seconds in a mixture: what a restorer adds to what it left over.
AFTER = ("smooth", "sharpen", "resharpen", "latent_noise", "warp", "noise", "jpeg", "saturation", "ringing", "cast")


class Variants:
    """Draws versions; with a VAE, also its reconstructions of clean and damaged crops."""

    def __init__(self, vae: Path | None = None) -> None:
        self.vae = None
        if vae is not None:
            from diffusers import AutoencoderKL

            self.vae = AutoencoderKL.from_pretrained(vae).eval().requires_grad_(False)

    @torch.inference_mode()
    def decode(self, images: list[np.ndarray], spread: float, rng: np.random.Generator) -> list[np.ndarray]:
        """Reconstructions of float32 [H, W, 3] images, their latents disturbed by `spread` of their deviation."""
        assert self.vae is not None
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) * 2 - 1
        z = self.vae.encode(x).latent_dist.mode()
        z = z + spread * z.std() * torch.from_numpy(rng.normal(size=z.shape).astype(np.float32))
        y = self.vae.decode(z).sample.permute(0, 2, 3, 1).numpy() / 2 + 0.5
        return [(np.clip(image, 0, 1) * 255).round().astype(np.float32) / np.float32(255) for image in y]

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

    def draw(self, clean: np.ndarray, count: int, rng: np.random.Generator) -> list[np.ndarray]:
        """`count` versions of the float32 [H, W, 3] crop in [0, 1]."""
        # Two kinds at two or three severities each: pairs that differ in strength only, as a policy's group does.
        versions: list[np.ndarray] = []
        for kind, times in ((rng.choice(TASKS), 3), (rng.choice([*TASKS, *RESTORERS]), 2)):
            severities = rng.uniform(0.02, 1, times)
            versions += [distort(clean, str(kind), float(s), rng) for s in severities]
        versions = (versions + [self.one(clean, rng) for _ in range(max(0, count - len(versions)))])[:count]
        if self.vae is not None:
            sources = [clean, versions[0], *versions[1:2]]
            spread = float(rng.choice([0.0, rng.uniform(0, 0.6)]))
            decoded = self.decode(sources, spread, rng)
            versions[-len(decoded) :] = decoded
        return versions
