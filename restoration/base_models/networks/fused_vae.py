"""A stock autoencoder whose decoder also sees features of the encoder (StableSR's CFW, arXiv 2305.07015, Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

_RESIDUAL = 0.2
_SLOPE = 0.2


class DenseBlock(nn.Module):
    """Residual dense block of ESRGAN (arXiv 1809.00219): five convolutions, each sees all that came before."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + i * growth, channels if i == 4 else growth, 3, padding=1) for i in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        seen = x
        for conv in self.convs[:-1]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), _SLOPE)], 1)
        return x + _RESIDUAL * self.convs[-1](seen)


class Dense(nn.Module):
    """Three dense blocks around a skip (RRDB)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(channels, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + _RESIDUAL * self.blocks(x)


class Fusion(nn.Module):
    """What a decoder's level adds to its activations after looking at the encoder's of the same level."""

    def __init__(self, channels: int, blocks: int, growth: int, groups: int) -> None:
        super().__init__()
        self.enter, self.leave = (
            ResnetBlock2D(in_channels=inside, out_channels=channels, temb_channels=None, groups=groups, eps=1e-6)
            for inside in (2 * channels, channels)
        )
        self.dense = nn.Sequential(*(Dense(channels, growth) for _ in range(blocks)))

    def forward(self, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Both [B, channels, h, w]."""
        return self.leave(self.dense(self.enter(torch.cat([encoded, decoded], 1), None)), None)


class FusedVAE(nn.Module):
    """An autoencoder and fusions; latents are unscaled.

    Args:
        vae: stock; the fused encoder and decoder need not be those the diffusion model was trained with.
        levels: which levels are fused, 0 the finest.
        blocks: dense blocks (RRDB) of each fusion.
        growth: channels that each convolution of a dense block adds.
    """

    def __init__(self, vae: AutoencoderKL, levels: Iterable[int], blocks: int, growth: int) -> None:
        super().__init__()
        self.vae = vae
        levels = sorted(levels)
        self.config = {"levels": levels, "blocks": blocks, "growth": growth}
        widths, groups = vae.config.block_out_channels, vae.config.norm_num_groups
        self.fusions = nn.ModuleDict({str(i): Fusion(widths[i], blocks, growth, groups) for i in levels})

    def encode(self, images: Tensor) -> tuple[DiagonalGaussianDistribution, dict[int, Tensor]]:
        """Posterior of images [B, 3, H, W] in [-1, 1], and the features [B, C, h, w] of each fused level."""
        encoder, features = self.vae.encoder, {}
        hidden = encoder.conv_in(images)
        for level, block in enumerate(encoder.down_blocks):
            hidden = _layers(block, hidden)
            if str(level) in self.fusions:
                features[level] = hidden
            for halve in block.downsamplers or ():
                hidden = halve(hidden)
        hidden = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(hidden))))
        return DiagonalGaussianDistribution(self.vae.quant_conv(hidden)), features

    def decode(self, latents: Tensor, features: Mapping[int, Tensor], weight: float) -> Tensor:
        """Pixels about [-1, 1], not clamped, [B, 3, H, W].

        Args:
            latents: [B, C, h, w].
            features: of `encode`, of an image that the decoded one shall resemble; unused with weight 0.
            weight: of the fusions; 0 is the plain autoencoder, StableSR uses 0.5.

        Raises:
            KeyError: features of a fused level are absent.
        """
        decoder = self.vae.decoder
        hidden = decoder.mid_block(decoder.conv_in(self.vae.post_quant_conv(latents)))
        for level, block in zip(reversed(range(len(decoder.up_blocks))), decoder.up_blocks, strict=True):
            hidden = _layers(block, hidden)
            if weight and str(level) in self.fusions:
                hidden = hidden + weight * self.fusions[str(level)](features[level], hidden)
            for double in block.upsamplers or ():
                hidden = double(hidden)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden)))


def _layers(block: Any, hidden: Tensor) -> Tensor:
    """A block of encoder or decoder without its change of size."""
    for resnet, attention in zip_longest(block.resnets, getattr(block, "attentions", ())):
        hidden = resnet(hidden, None)
        if attention is not None:
            hidden = attention(hidden)
    return hidden
