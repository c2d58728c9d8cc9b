"""Restormer (arXiv 2111.09881): a U-shaped transformer that attends over channels instead of pixels.

Written from the paper's formulas; the parameter names are those of the released weights, so that a
released state dict loads directly.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from restoration.checkpoints import Shapes, children
from restoration.statistics import mean, over_picture, shared


@dataclass(frozen=True)
class RestormerConfig:
    """The defaults are the released deraining and deblurring networks.

    Attributes:
        norm: "WithBias" (deraining, deblurring) or "BiasFree" (denoising).
        dual_pixel: six input channels (left and right view) and no residual from input to output.
    """

    in_channels: int = 3
    out_channels: int = 3
    dim: int = 48
    num_blocks: tuple[int, int, int, int] = (4, 6, 6, 8)
    num_refinement_blocks: int = 4
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    ffn_expansion: float = 2.66
    bias: bool = False
    norm: Literal["WithBias", "BiasFree"] = "WithBias"
    dual_pixel: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_blocks", tuple(self.num_blocks))
        object.__setattr__(self, "heads", tuple(self.heads))
        if len(self.num_blocks) != 4 or len(self.heads) != 4:
            raise ValueError(f"num_blocks={self.num_blocks}, heads={self.heads}: Restormer has four levels")
        for level, heads in enumerate(self.heads):
            if self.dim * 2**level % heads:
                raise ValueError(f"heads={self.heads}: level {level} has {self.dim * 2**level} channels")
        if self.dim % 2:
            raise ValueError(f"dim={self.dim} must be even")
        if self.norm not in ("WithBias", "BiasFree"):
            raise ValueError(f"norm={self.norm!r}: choose WithBias or BiasFree")
        if not self.dual_pixel and self.in_channels != self.out_channels:
            raise ValueError(f"in_channels={self.in_channels} must equal out_channels={self.out_channels}")


class _NormWeights(nn.Module):
    def __init__(self, channels: int, with_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if with_bias else None


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel; the bias-free one scales without centring. [B,C,H,W] -> same."""

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        self.body = _NormWeights(channels, with_bias=kind == "WithBias")

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.body.weight, self.body.bias
        if bias is not None:
            return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, 1e-5).permute(0, 3, 1, 2)
        variance = x.var(1, keepdim=True, unbiased=False)
        return x * torch.rsqrt(variance + 1e-5) * weight[:, None, None]


class ChannelAttention(nn.Module):
    """MDTA: attention between channels, with queries and keys of unit length over the pixels."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, channels * 3, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(channels * 3, channels * 3, 3, padding=1, groups=channels * 3, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv_dwconv(self.qkv(x)).reshape(b, 3, self.heads, c // self.heads, h, w)
        q, k, v = qkv.flatten(-2).unbind(1)
        if shared():
            similarity = _cosines(over_picture(lambda part: _products(part(qkv)), mean)).to(q.dtype)
        else:
            similarity = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2)
        mixed = (similarity * self.temperature).softmax(-1) @ v
        return self.project_out(mixed.reshape(b, c, h, w))


def _products(qkv: Tensor) -> Tensor:
    """Means over the pixels of q k^T, q² and k², float32 [B, heads, c, c + 2], of [B, 3, heads, c, h, w]."""
    q, k, _ = qkv.flatten(-2).float().unbind(1)
    squares = (v.square().sum(-1, keepdim=True) for v in (q, k))
    return torch.cat([q @ k.transpose(-1, -2), *squares], -1) / q.shape[-1]


def _cosines(products: Tensor) -> Tensor:
    """[B, heads, c, c] of `_products`."""
    of_q, of_k = products[..., -2:].sqrt().unbind(-1)
    return products[..., :-2] / (of_q[..., :, None] * of_k[..., None, :]).clamp_min(1e-12)


class GatedFeedForward(nn.Module):
    """GDFN: one half of the depth-wise features gates the other."""

    def __init__(self, channels: int, expansion: float, bias: bool) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, hidden * 2, 1, bias=bias)
        self.dwconv = nn.Conv2d(hidden * 2, hidden * 2, 3, padding=1, groups=hidden * 2, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    def __init__(self, channels: int, heads: int, config: RestormerConfig) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels, config.norm)
        self.attn = ChannelAttention(channels, heads, config.bias)
        self.norm2 = ChannelNorm(channels, config.norm)
        self.ffn = GatedFeedForward(channels, config.ffn_expansion, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class _PatchEmbed(nn.Module):
    def __init__(self, in_channels: int, channels: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class _Resample(nn.Module):
    """Halves or doubles the side with a (un)shuffle; channels double or halve."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels * 2 if up else channels // 2, 3, padding=1, bias=False)
        self.body = nn.Sequential(conv, nn.PixelShuffle(2) if up else nn.PixelUnshuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Restormer(nn.Module):
    """float32 [B, in_channels, H, W] -> float32 [B, out_channels, H, W]; H and W multiples of 8; not clamped.

    Weights may have another type; all but the sum with `x` is then computed in it.
    """

    size_multiple = 8

    def __init__(self, config: RestormerConfig) -> None:
        super().__init__()
        self.config, dim, bias = config, config.dim, config.bias

        def blocks(count: int, channels: int, heads: int) -> nn.Sequential:
            return nn.Sequential(*(TransformerBlock(channels, heads, config) for _ in range(count)))

        n, h = config.num_blocks, config.heads
        self.patch_embed = _PatchEmbed(config.in_channels, dim, bias)
        self.encoder_level1 = blocks(n[0], dim, h[0])
        self.down1_2 = _Resample(dim, up=False)
        self.encoder_level2 = blocks(n[1], dim * 2, h[1])
        self.down2_3 = _Resample(dim * 2, up=False)
        self.encoder_level3 = blocks(n[2], dim * 4, h[2])
        self.down3_4 = _Resample(dim * 4, up=False)
        self.latent = blocks(n[3], dim * 8, h[3])
        self.up4_3 = _Resample(dim * 8, up=True)
        self.reduce_chan_level3 = nn.Conv2d(dim * 8, dim * 4, 1, bias=bias)
        self.decoder_level3 = blocks(n[2], dim * 4, h[2])
        self.up3_2 = _Resample(dim * 4, up=True)
        self.reduce_chan_level2 = nn.Conv2d(dim * 4, dim * 2, 1, bias=bias)
        self.decoder_level2 = blocks(n[1], dim * 2, h[1])
        self.up2_1 = _Resample(dim * 2, up=True)
        # The finest decoder level keeps both halves of its concatenation: no reduction there.
        self.decoder_level1 = blocks(n[0], dim * 2, h[0])
        self.refinement = blocks(config.num_refinement_blocks, dim * 2, h[0])
        if config.dual_pixel:
            self.skip_conv = nn.Conv2d(dim, dim * 2, 1, bias=bias)
        self.output = nn.Conv2d(dim * 2, config.out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ValueError on a wrong number of channels or a side that is no multiple of 8."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels or x.shape[2] % 8 or x.shape[3] % 8:
            raise ValueError(
                f"Restormer: got {tuple(x.shape)}, needs [B, {self.config.in_channels}, H, W] with H and W multiples "
                "of 8; pad the image first"
            )
        embedded = self.patch_embed(x.to(self.output.weight.dtype))
        one = self.encoder_level1(embedded)
        two = self.encoder_level2(self.down1_2(one))
        three = self.encoder_level3(self.down2_3(two))
        y = self.latent(self.down3_4(three))
        y = self.decoder_level3(self.reduce_chan_level3(torch.cat([self.up4_3(y), three], 1)))
        y = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(y), two], 1)))
        y = self.refinement(self.decoder_level1(torch.cat([self.up2_1(y), one], 1)))
        if self.config.dual_pixel:
            return self.output(y + self.skip_conv(embedded)).to(x.dtype)
        return self.output(y) + x

    def config_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values; `RestormerConfig(**d)` reads it."""
        return asdict(self.config)


def config_from_shapes(shapes: Shapes) -> RestormerConfig:
    """The configuration that a state dict in the released key layout belongs to.

    Raises:
        KeyError: a key that every Restormer has is absent.
        ValueError: the widths fit no Restormer.
    """
    dim, in_channels = shapes["patch_embed.proj.weight"][:2]

    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    heads = tuple(shapes[f"{level}.0.attn.temperature"][0] for level in levels)
    # int(channels * expansion) = hidden at every level; 2.66 is the released factor, else any that fits all.
    hidden = {dim * 2**i: shapes[f"{level}.0.ffn.project_out.weight"][1] for i, level in enumerate(levels)}
    low, high = max(h / c for c, h in hidden.items()), min((h + 1) / c for c, h in hidden.items())
    if low >= high:
        raise ValueError(f"Restormer: no expansion factor gives the hidden widths {hidden}")
    one, two, three, four = (children(shapes, level) for level in levels)
    return RestormerConfig(
        in_channels=in_channels,
        out_channels=shapes["output.weight"][0],
        dim=dim,
        num_blocks=(one, two, three, four),
        num_refinement_blocks=children(shapes, "refinement"),
        heads=(heads[0], heads[1], heads[2], heads[3]),
        ffn_expansion=2.66 if low <= 2.66 < high else (low + high) / 2,
        bias="patch_embed.proj.bias" in shapes,
        norm="WithBias" if "encoder_level1.0.norm1.body.bias" in shapes else "BiasFree",
        dual_pixel="skip_conv.weight" in shapes,
    )


SMALL = RestormerConfig(dim=10, num_blocks=(1, 1, 1, 1), num_refinement_blocks=1, heads=(1, 2, 4, 8), ffn_expansion=2.0)
"""The cleaner of the demo."""
