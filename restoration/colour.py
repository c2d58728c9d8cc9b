"""Colour fix: a restored image takes its colours from a reference that it agrees with in content.

The VAE and the chain shift colours; the cleaner's output, which the denoiser is conditioned on, has the right ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

ColourFix = Literal["none", "adain", "wavelet"]
COLOUR_FIXES: tuple[ColourFix, ...] = ("none", "adain", "wavelet")
LEVELS = 5


def match_colour(images: Tensor, reference: Tensor, how: ColourFix) -> Tensor:
    """`images` with the colours of `reference`; both float32 [B, 3, H, W] in [0, 1], as is the result.

    "adain" gives each channel the reference's mean and deviation; "wavelet" keeps what an à-trous decomposition of
    `LEVELS` levels calls detail and takes the rest, about what lies above 32 px, from the reference.

    Raises:
        ValueError: unknown `how`, or shapes that differ.
    """
    if how not in COLOUR_FIXES:
        raise ValueError(f"colour_fix={how!r}: choose {', '.join(COLOUR_FIXES)}")
    if how == "none":
        return images
    if images.shape != reference.shape:
        raise ValueError(f"colour fix: images {tuple(images.shape)}, reference {tuple(reference.shape)}")
    if how == "adain":
        mean, deviation = _statistics(images)
        wanted_mean, wanted_deviation = _statistics(reference)
        return ((images - mean) / deviation * wanted_deviation + wanted_mean).clamp(0, 1)
    return (images - _base(images) + _base(reference)).clamp(0, 1)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(images, dim=(2, 3), keepdim=True, correction=0)
    return mean, (variance + 1e-5).sqrt()


def _base(images: Tensor) -> Tensor:
    """What `LEVELS` passes of a binomial kernel, twice as wide each time, leave; edges are repeated."""
    line = images.new_full((3,), 0.25)
    line[1] = 0.5
    kernel = (line[:, None] * line).expand(images.shape[1], 1, 3, 3)
    for level in range(LEVELS):
        width = 2**level
        padded = functional.pad(images, (width,) * 4, mode="replicate")
        images = functional.conv2d(padded, kernel, dilation=width, groups=images.shape[1])
    return images
