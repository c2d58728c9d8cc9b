"""SNR-aware low-light enhancement (CVPR 2022): pixels with a good signal are restored by convolutions, those without
by a transformer over patches that only attends to patches with a good signal.

Written from the description of the network; the parameter names are those of the released weights. The map of the
signal-to-noise ratio is made from the image alone (`snr_map`), outside the network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration.checkpoints import Shapes, children
from restoration.statistics import beyond, joined, largest, over_picture, parted, shared

LUMA = (0.299, 0.587, 0.114)
PATCH = 4  # side of a token, in features of a quarter of the image's resolution
SLOPE = 0.1  # of the leaky ReLU


@dataclass(frozen=True)
class SNRConfig:
    """The defaults are the released networks of LOL.

    Attributes:
        channels: of the features.
        front_blocks, light_blocks, back_blocks: residual blocks before the two branches, in the convolutional branch,
            after their fusion.
        layers, heads, key_width, hidden: of the transformer.
    """

    channels: int = 64
    front_blocks: int = 1
    light_blocks: int = 6
    back_blocks: int = 1
    layers: int = 6
    heads: int = 8
    key_width: int = 64
    hidden: int = 2048


def box_blur(image: Tensor, side: int = 5) -> Tensor:
    """Mean of `side` x `side` pixels, reflected at the border without repeating it; float32 [B, C, H, W] -> same.

    Summed exactly in levels of 255, as the reference's is: where a pixel nearly equals its blur, the last bit of
    the mean decides the ratio.
    """
    half = side // 2
    padded = F.pad(image * 255, (half,) * 4, mode="reflect").double()
    return F.avg_pool2d(padded, side, 1).float() / 255


def snr_ratio(image: Tensor, blurred: Tensor) -> Tensor:
    """Blurred luma over its distance to the image's; float32 [B, 3, H, W] in [0, 1] twice -> [B, 1, H, W]."""
    weights = image.new_tensor(LUMA)[:, None, None]
    signal = (blurred * weights).sum(1, keepdim=True)
    noise = ((image * weights).sum(1, keepdim=True) - signal).abs()
    return signal / (noise + 1e-4)


def snr_map(image: Tensor) -> Tensor:
    """`snr_ratio` over its maximum in each image; float32 [B, 3, H, W] in [0, 1] -> [B, 1, H, W] in [0, 1]."""
    ratio = snr_ratio(image, box_blur(image))
    if shared():
        peak = over_picture(lambda part: part(ratio).amax((1, 2, 3), keepdim=True), largest)
    else:
        peak = ratio.amax((1, 2, 3), keepdim=True)
    return (ratio / (peak + 1e-4)).clamp(0, 1)


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


class _Attention(nn.Module):
    def __init__(self, width: int, config: SNRConfig) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.key_width
        self.w_qs = nn.Linear(width, inner, bias=False)
        self.w_ks = nn.Linear(width, inner, bias=False)
        self.w_vs = nn.Linear(width, inner, bias=False)
        self.fc = nn.Linear(inner, width, bias=False)
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        normed = self.layer_norm(x)
        q, k, v = (
            f(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, y in ((self.w_qs, normed), (self.w_ks, normed), (self.w_vs, normed))
        )
        if shared():
            return x + self.fc(_attended_beyond(q, k, v, seen).transpose(1, 2).flatten(2))
        scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
        # not -inf: where no patch has a signal, all count alike
        weights = scores.masked_fill(~seen[:, None, None], -1e9).softmax(-1)
        return x + self.fc((weights @ v).transpose(1, 2).flatten(2))


def _attended_beyond(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention [B, heads, N, d] of a tile's patches to its own and to the sample's, each of which stands for many.

    Args:
        q, k, v: [B, heads, N, d] each; seen: bool [B, N].
    """
    flags = seen[:, None, :, None].expand(-1, k.shape[1], -1, 1).to(k.dtype)
    sampled, counts = beyond(torch.cat([k, v, flags], -1)), flags.new_zeros(k.shape[-2])
    if sampled is not None:
        others, weight = sampled
        k, v, flags = (
            torch.cat(pair, -2)
            for pair in zip((k, v, flags), others.split([k.shape[-1], v.shape[-1], 1], -1), strict=True)
        )
        counts = torch.cat([counts, counts.new_full(others.shape[-2:-1], weight)])
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(flags.transpose(-1, -2) == 0, -1e9) + counts
    return scores.softmax(-1) @ v


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, hidden)
        self.w_2 = nn.Linear(hidden, width)
        self.layer_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.w_2(F.relu(self.w_1(self.layer_norm(x))))


class _Layer(nn.Module):
    def __init__(self, width: int, config: SNRConfig) -> None:
        super().__init__()
        self.slf_attn = _Attention(width, config)
        self.pos_ffn = _FeedForward(width, config.hidden)

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        return self.pos_ffn(self.slf_attn(tokens, seen))


class PatchTransformer(nn.Module):
    """Tokens [B, N, width], bool [B, N] of those that may be attended to -> tokens."""

    def __init__(self, width: int, config: SNRConfig) -> None:
        super().__init__()
        self.layer_stack = nn.ModuleList(_Layer(width, config) for _ in range(config.layers))

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        if shared():
            tokens, seen = joined(tokens), joined(seen[..., None])[..., 0]
        for layer in self.layer_stack:
            tokens = layer(tokens, seen)
        return parted(tokens) if shared() else tokens


class SNRAware(nn.Module):
    """float32 [B, 3, H, W] in [0, 1] -> [B, 3, H, W], not clamped; H and W multiples of 4.

    Where a side is no multiple of 16, the transformer leaves the last rows or columns of its features 0, as the
    reference does. Weights may have another type than `x`, in which all is then computed but the map of the
    signal-to-noise ratio and the sum with `x`.
    """

    size_multiple = 4

    def __init__(self, config: SNRConfig) -> None:
        super().__init__()
        self.config, c = config, config.channels

        def blocks(count: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(c) for _ in range(count)))

        self.conv_first_1 = nn.Conv2d(3, c, 3, padding=1)
        self.conv_first_2 = nn.Conv2d(c, c, 3, stride=2, padding=1)
        self.conv_first_3 = nn.Conv2d(c, c, 3, stride=2, padding=1)
        self.feature_extraction = blocks(config.front_blocks)
        self.recon_trunk_light = blocks(config.light_blocks)
        self.transformer = PatchTransformer(c * PATCH**2, config)
        self.recon_trunk = blocks(config.back_blocks)
        self.upconv1 = nn.Conv2d(c * 2, c * 4, 3, padding=1)
        self.upconv2 = nn.Conv2d(c * 2, c * 4, 3, padding=1)
        self.HRconv = nn.Conv2d(c * 2, c, 3, padding=1)
        self.conv_last = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, x: Tensor, snr: Tensor | None = None) -> Tensor:
        """`snr`: [B, 1, H, W] in [0, 1], by default `snr_map(x)`.

        Raises:
            ValueError: a side that is no multiple of 4 or is below 16.
        """
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % 4 or x.shape[3] % 4 or min(x.shape[2:]) < 16:
            raise ValueError(
                f"SNRAware: got {tuple(x.shape)}, needs [B, 3, H, W] with H and W multiples of 4, at least 16; "
                "pad the image first"
            )
        dtype = self.conv_last.weight.dtype
        full = F.leaky_relu(self.conv_first_1(x.to(dtype)), SLOPE)
        half = F.leaky_relu(self.conv_first_2(full), SLOPE)
        quarter = F.leaky_relu(self.conv_first_3(half), SLOPE)
        features = self.feature_extraction(quarter)
        signal = F.interpolate(snr_map(x) if snr is None else snr, size=features.shape[-2:], mode="nearest").to(dtype)
        far = self.attended(features, signal)
        fused = signal * self.recon_trunk_light(features) + (1 - signal) * far
        y = self.recon_trunk(fused)
        for skip, conv in ((quarter, self.upconv1), (half, self.upconv2)):
            y = F.leaky_relu(F.pixel_shuffle(conv(torch.cat([y, skip], 1)), 2), SLOPE)
        y = F.leaky_relu(self.HRconv(torch.cat([y, full], 1)), SLOPE)
        return self.conv_last(y) + x

    def attended(self, features: Tensor, signal: Tensor) -> Tensor:
        """The transformer's features [B, C, h, w]; patches with a mean signal of 0.5 or less are not attended to."""
        tokens = self.transformer(*self.tokens(features, signal))
        return F.fold(tokens.transpose(1, 2), features.shape[-2:], PATCH, stride=PATCH)

    @staticmethod
    def tokens(features: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Patches of the features [B, N, C PATCH²], and which of them have a signal, bool [B, N]."""
        seen = F.unfold(signal, PATCH, stride=PATCH).mean(1) > 0.5
        return F.unfold(features, PATCH, stride=PATCH).transpose(1, 2), seen

    def config_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values; `SNRConfig(**d)` reads it."""
        return asdict(self.config)


def config_from_shapes(shapes: Shapes, key_width: int = 64) -> SNRConfig:
    """The configuration that a state dict in the released key layout belongs to.

    Args:
        key_width: of a head, which no shape tells; 64 in all released networks.

    Raises:
        KeyError: a key that every such network has is absent.
        ValueError: `key_width` doesn't divide the attention's width.
    """

    inner = shapes["transformer.layer_stack.0.slf_attn.w_qs.weight"][0]
    if inner % key_width:
        raise ValueError(f"SNRAware: an attention of width {inner} has no heads of width {key_width}")
    return SNRConfig(
        channels=shapes["conv_first_1.weight"][0],
        front_blocks=children(shapes, "feature_extraction"),
        light_blocks=children(shapes, "recon_trunk_light"),
        back_blocks=children(shapes, "recon_trunk"),
        layers=children(shapes, "transformer.layer_stack"),
        heads=inner // key_width,
        key_width=key_width,
        hidden=shapes["transformer.layer_stack.0.pos_ffn.w_1.weight"][0],
    )
