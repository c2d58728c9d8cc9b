"""Train a small SD-type VAE on crops of photographs, from the principal components of their blocks on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from restoration.precision import autocast
from restoration.pretrain.ahead import Ahead
from restoration.pretrain.crops import PhotoCrops
from restoration.pretrain.fit import FitSettings
from restoration.pretrain.linear_start import carry, centre, linear_end, place
from restoration.restore import seeded_generator

_NORMALISED_OVER = 128  # crops
_NOISE = -7.5  # log-variance of the first latents' noise: about 1 % of their deviation


@dataclass(frozen=True)
class VaeRecipe(FitSettings):
    """
    Attributes:
        channels: one level each; downscaling is 2 ** (levels - 1).
        scale: range of the factor that photographs are resized by before cropping.
        kl_weight: of the KL divergence, summed over a crop's latents.
        whiten: how far the latents' channels are brought to equal deviation in the end, 0 (not at all) to 1: fine
            detail lies in channels of small deviation, which noise covers the longer the more they are raised.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    latent_channels: int = 16
    iterations: int = 4000
    batch_size: int = 8
    crop: int = 64
    scale: tuple[float, float] = (0.4, 1.0)
    lr: float = 1e-3
    ema: float = 0.999
    kl_weight: float = 1e-7
    whiten: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.whiten <= 1:
            raise ValueError(f"whiten={self.whiten}: from 0 to 1")


def build_vae(recipe: VaeRecipe) -> AutoencoderKL:
    levels = len(recipe.channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=recipe.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=recipe.crop,
    )


def vae_losses(
    vae: AutoencoderKL, recipe: VaeRecipe, photos: Ahead, device: torch.device, products: torch.dtype
) -> Callable[[int], Iterator[Tensor]]:
    """Iteration -> shares of L1 + MSE + half the L1 of the edges + KL, one a micro-batch; images in [-1, 1]."""

    def losses(iteration: int) -> Iterator[Tensor]:
        (images,) = photos(iteration)
        generator = seeded_generator(f"vae/{iteration}", recipe.seed)
        for x in (images * 2 - 1).split(recipe.micro_batch):
            x = x.to(device, memory_format=torch.channels_last)
            with autocast(device, products):
                posterior = vae.encode(x).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
                y = vae.decode(posterior.mean + posterior.std * noise).sample
            error = y.float() - x
            edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
            kl = posterior.kl().float().mean()
            loss = error.abs().mean() + error.square().mean() + 0.5 * edges + recipe.kl_weight * kl
            yield loss * (len(x) / len(images))

    return losses


def crops_of(photos: Path, recipe: VaeRecipe, workers: int) -> Ahead:
    """(images,) of an iteration, float32 [batch_size, 3, crop, crop] in [0, 1]."""
    drawn = PhotoCrops(photos, recipe.crop, recipe.scale, recipe.seed)

    def make(iteration: int) -> tuple[Tensor, ...]:
        drawn.reseed((recipe.seed, 0, iteration))
        return (drawn.batch(recipe.batch_size),)

    return Ahead(make, workers)


def start_from_components(vae: AutoencoderKL, images: Tensor) -> None:
    """The encoder begins as the first principal components of blocks as large as a latent, the decoder as their mean.

    Args:
        vae: of three levels, the last two of equal width, the first narrower and of at least 12 channels.
        images: [B, 3, H, W] in [0, 1] to take the components of.

    Raises:
        ValueError: another shape.
    """
    widths = vae.config.block_out_channels
    if len(widths) != 3 or not 12 <= widths[0] < widths[1] == widths[2]:
        raise ValueError(
            f"vae.channels={tuple(widths)}: three levels, the last two of equal width, the first narrower, at least 12"
        )
    encoder, decoder, latents = vae.encoder, vae.decoder, vae.config.latent_channels
    halve, quarter = to_channels(3), to_channels(12)
    blocks = _blocks(_blocks(images * 2 - 1, halve), quarter)  # [B, 48, h, w]
    samples = blocks.movedim(1, -1).reshape(-1, 48).double()
    _, vectors = torch.linalg.eigh(samples.T.cov())
    components = vectors.flip(1).T[:latents].float()  # [latents, 48], rows of unit length

    place(encoder.conv_in, centre(torch.eye(3), 3))
    for block, signals in zip(encoder.down_blocks[:2], (3, 12), strict=True):
        for resnet in block.resnets:
            carry(resnet, signals)
    place(encoder.down_blocks[0].downsamplers[0].conv, halve)
    rows = torch.einsum("ko,oihw->kihw", components, quarter)
    rest = [*encoder.down_blocks[2].resnets, *encoder.mid_block.resnets]
    linear_end(encoder.down_blocks[1].downsamplers[0].conv, rows, rest, encoder.conv_norm_out, encoder.conv_out)
    with torch.no_grad():
        encoder.conv_out.weight[latents:] = 0
        encoder.conv_out.bias[latents:] = _NOISE
        vae.quant_conv.weight.copy_(centre(torch.eye(2 * latents), 1))
        vae.post_quant_conv.weight.copy_(centre(torch.eye(latents), 1))
        vae.quant_conv.bias.zero_()
        vae.post_quant_conv.bias.zero_()

    for resnet in decoder.mid_block.resnets:
        carry(resnet, latents)
    place(decoder.conv_in, centre(torch.eye(latents), 3))
    for block in decoder.up_blocks[:2]:
        for resnet in block.resnets:
            carry(resnet, latents)
        place(block.upsamplers[0].conv, centre(torch.eye(latents), 3))
    first, *others = decoder.up_blocks[2].resnets
    carry(first, 0)
    colours = components.unflatten(1, (16, 3)).mean(1).T  # [3, latents]
    linear_end(first.conv_shortcut, centre(colours, 1), others, decoder.conv_norm_out, decoder.conv_out)


def to_channels(channels: int) -> Tensor:
    """Weights [4 channels, channels, 3, 3] that with stride 2 make channels of the pixels of each 2 x 2 block."""
    weight = torch.zeros(2, 2, channels, channels, 3, 3)
    for y in range(2):
        for x in range(2):
            weight[y, x, :, :, y, x] = torch.eye(channels)
    return weight.flatten(0, 2)


def _blocks(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, stride=2)  # as diffusers pads


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: Tensor, whiten: float) -> None:
    """Shift and scale the latents so that their channels have mean 0, all together deviation 1, pictures unchanged.

    Done in the 1 x 1 convolutions behind the encoder and before the decoder.

    Args:
        images: [B, 3, H, W] in [0, 1] on the VAE's device.
        whiten: 0 scales all channels alike, 1 gives each channel deviation 1.
    """
    modes = torch.cat([vae.encode(x * 2 - 1).latent_dist.mode() for x in images.split(16)])
    mean, deviation = modes.mean((0, 2, 3)), modes.std((0, 2, 3))
    scale = deviation**-whiten
    scale = scale / (scale * deviation).square().mean().sqrt()
    latents = len(scale)
    into, out = vae.quant_conv, vae.post_quant_conv
    into.bias[:latents] = (into.bias[:latents] - mean) * scale
    into.weight[:latents] *= scale[:, None, None, None]
    into.bias[latents:] += 2 * scale.log()
    out.bias += (out.weight * mean[None, :, None, None]).sum((1, 2, 3))
    out.weight /= scale[None, :, None, None]
    vae.register_to_config(scaling_factor=1.0)


def normalise(vae: AutoencoderKL, photos: Path, recipe: VaeRecipe, device: torch.device) -> None:
    """`normalise_latents` over training crops."""
    drawn = PhotoCrops(photos, recipe.crop, recipe.scale, recipe.seed)
    normalise_latents(vae, drawn.batch(_NORMALISED_OVER).to(device), recipe.whiten)
