"""PSNR and SSIM per image as the evaluation code of each field computes them.

`lowlight_rgb`: on RGB, SSIM averaged over the channels. `derain_y`: on the luma of MATLAB's `rgb2ycbcr`, rounded
to levels. Both round images to 8 bits first, because results are compared as files, and use the SSIM of Wang et
al. 2004 (Gaussian window of 11, sigma 1.5, population covariance, only windows that lie inside the image).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restoration.images import to_uint8

Images: TypeAlias = Tensor | NDArray[np.uint8]

DEFAULT_PROTOCOL = "lowlight_rgb"
PSNR_CEILING = 100.0  # of identical images; infinity would make every mean infinite
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
LPIPS_SIDE = 31  # AlexNet's second pooling has nothing left below it


@dataclass(frozen=True)
class Protocol:
    """How PSNR and SSIM are taken. Images are float [B, 3, H, W] or [3, H, W] in [0, 1], or uint8 [B, H, W, 3] or
    [H, W, 3]; results are float64 [B], one value an image.
    """

    name: str
    colour: Literal["rgb", "matlab_y"]

    def psnr(self, x: Images, y: Images) -> NDArray[np.float64]:
        """Peak signal-to-noise ratio in dB, at most `PSNR_CEILING`.

        Raises:
            ValueError: shapes that differ or are no images.
        """
        a, b = self._levels(x, y)
        error = (a - b).square().flatten(1).mean(1)
        decibel = 10 * torch.log10(255**2 / error.clamp_min(1e-12))
        return np.asarray(decibel.clamp_max(PSNR_CEILING).cpu().numpy(), dtype=np.float64)

    def ssim(self, x: Images, y: Images) -> NDArray[np.float64]:
        """Structural similarity, at most 1.

        Raises:
            ValueError: as `psnr`, or images smaller than the window of 11 pixels.
        """
        a, b = self._levels(x, y)
        if min(a.shape[-2:]) < SSIM_WINDOW:
            raise ValueError(
                f"SSIM needs images of at least {SSIM_WINDOW} px a side, "
                f"got {a.shape[-1]}x{a.shape[-2]} (width x height)"
            )
        mean_a, mean_b = _smooth(a), _smooth(b)
        variance_a = _smooth(a * a) - mean_a.square()
        variance_b = _smooth(b * b) - mean_b.square()
        covariance = _smooth(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
        structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
        per_image = (luminance * structure).flatten(1).mean(1)
        return np.asarray(per_image.cpu().numpy(), dtype=np.float64)

    def _levels(self, x: Images, y: Images) -> tuple[Tensor, Tensor]:
        a, b = _rounded(x), _rounded(y)
        if a.shape != b.shape:
            raise ValueError(f"{self.name}: the images differ in shape, {tuple(a.shape)} and {tuple(b.shape)}")
        return (a, b) if self.colour == "rgb" else (_matlab_luma(a), _matlab_luma(b))


PROTOCOLS: dict[str, Protocol] = {
    p.name: p for p in (Protocol("lowlight_rgb", "rgb"), Protocol("derain_y", "matlab_y"))
}


def protocol(name: str = DEFAULT_PROTOCOL) -> Protocol:
    """The protocol of that name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"metric protocol {name!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def measure(name: str, x: Images, y: Images) -> dict[str, float]:
    """{"psnr": dB, "ssim": ...} of one image under the protocol `name`.

    Raises:
        ValueError: unknown protocol, several images, or as `Protocol.ssim`.
    """
    chosen = protocol(name)
    psnr, ssim = chosen.psnr(x, y), chosen.ssim(x, y)
    if len(psnr) != 1:
        raise ValueError(f"measure takes one image, got {len(psnr)}; protocol(name).psnr takes a batch")
    return {"psnr": float(psnr[0]), "ssim": float(ssim[0])}


def _rounded(images: Images) -> Tensor:
    """float64 [B, 3, H, W] of whole levels 0 to 255."""
    if not isinstance(images, Tensor) and images.dtype != np.uint8:
        raise ValueError(f"expected a float tensor or uint8 pixels, got an array of {images.dtype}")
    device = images.device if isinstance(images, Tensor) else "cpu"
    if isinstance(images, Tensor) and (images.ndim < 3 or images.shape[-3] != 3):
        raise ValueError(f"expected images [B, 3, H, W] or [3, H, W], got shape {tuple(images.shape)}")
    pixels = to_uint8(images) if isinstance(images, Tensor) else images
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.size == 0:
        raise ValueError(f"expected RGB images, got shape {tuple(images.shape)}")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1))).to(device, torch.float64)


def _matlab_luma(levels: Tensor) -> Tensor:
    """Y of ITU-R BT.601 in 16..235 as `rgb2ycbcr` gives it for uint8, rounded; [B, 3, H, W] to [B, 1, H, W]."""
    thousandths = levels.new_tensor([65481.0, 128553.0, 24966.0]).view(1, 3, 1, 1)  # whole numbers keep ties exact
    return ((levels * thousandths).sum(1, keepdim=True) / 255_000 + 16.5).floor()  # MATLAB rounds halves up


def _smooth(images: Tensor) -> Tensor:
    """Gaussian mean over each window that fits; [..., H, W] to [..., H-10, W-10].

    Sums of shifted views: torch has no fast float64 convolution on CPU.
    """
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    weights = (window / window.sum()).tolist()
    for axis in (-2, -1):
        length = images.shape[axis] - SSIM_WINDOW + 1
        total = images.narrow(axis, 0, length) * weights[0]
        for shift in range(1, SSIM_WINDOW):
            total.add_(images.narrow(axis, shift, length), alpha=weights[shift])
        images = total
    return images
