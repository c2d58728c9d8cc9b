"""Auxiliary heads of supervised fine-tuning: what they read off a ControlNet must look like the ground truth.

PASD (arXiv 2308.14469) reads pictures off the hint after each halving; XPSR (arXiv 2403.05049) reads latents off the
residuals too. They teach the ControlNet to take the degradation away, and no model needs them afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel
from torch import Tensor, nn


@dataclass
class Seen:
    """Of one run of the ControlNet: the hint after each halving, and the residuals, the middle one last."""

    hints: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)


class ControlHeads(nn.Module):
    """A convolution for each halving of the hint and, with `latents` channels above 0, for each residual."""

    def __init__(self, controlnet: ControlNetModel, latents: int = 0) -> None:
        super().__init__()
        halvings = controlnet.controlnet_cond_embedding.blocks[1::2]
        residuals = (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block) if latents else ()
        self.rgbs = nn.ModuleList(nn.Conv2d(block.out_channels, 3, 3, padding=1) for block in halvings)
        self.latents = nn.ModuleList(nn.Conv2d(block.out_channels, latents, 3, padding=1) for block in residuals)

    @contextmanager
    def watch(self, controlnet: ControlNetModel) -> Iterator[Seen]:
        """Inside, what a run of `controlnet` shows is collected, with its graph."""
        seen = Seen()

        def hint(module: nn.Module, given: Any, output: Tensor) -> None:
            seen.hints.append(F.silu(output))

        def residuals(module: nn.Module, given: Any, output: tuple[list[Tensor], Tensor]) -> None:
            seen.residuals += [*output[0], output[1]]

        hooks = [b.register_forward_hook(hint) for b in controlnet.controlnet_cond_embedding.blocks[1::2]]
        hooks.append(controlnet.register_forward_hook(residuals))
        try:
            yield seen
        finally:
            for hook in hooks:
                hook.remove()

    def read(self, seen: Seen) -> tuple[list[Tensor], list[Tensor]]:
        """Pictures [B,3,h,w] about [-1, 1], one for each halving; scaled latents [B,C,h,w], one for each residual."""
        pictures = [head(hint) for head, hint in zip(self.rgbs, seen.hints, strict=True)]
        residuals = seen.residuals if len(self.latents) else []
        return pictures, [head(residual) for head, residual in zip(self.latents, residuals, strict=True)]

    def forward(self, seen: Seen, gt: Tensor, gt_latent: Tensor) -> Tensor:
        """Sum of the L1 distances to the ground truth, averaged down to each size, float32 [B].

        Args:
            gt: [B,3,H,W] in [0, 1]; gt_latent: scaled, [B,C,h,w].
        """
        pictures, latents = self.read(seen)
        wanted = [gt * 2 - 1] * len(pictures) + [gt_latent] * len(latents)
        total = torch.zeros(len(gt), device=gt.device)
        for found, truth in zip(pictures + latents, wanted, strict=True):
            difference = found.float() - F.interpolate(truth, found.shape[-2:], mode="area")
            total = total + difference.abs().flatten(1).mean(1)
        return total
