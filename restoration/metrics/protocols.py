"""PSNR and SSIM per image as the evaluation code of each field computes them, in float64.

A protocol's name may have flags behind it, which change it and stay in the name: `lowlight_rgb+gt_mean`,
`derain_y+border=4`, `lowlight_rgb+resize=512x512`, `dpdd_float_8+y`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restoration.images import to_uint8
from restoration.metrics.alignment import align
from restoration.metrics.similarity import SIMILARITIES, SSIM_WINDOW, Similarity

__all__ = ["DEFAULT_PROTOCOL", "LPIPS_SIDE", "PROTOCOLS", "SSIM_WINDOW", "Protocol", "measure", "protocol"]

Images: TypeAlias = Tensor | NDArray[np.uint8]
Figures: TypeAlias = NDArray[np.float64]

DEFAULT_PROTOCOL = "lowlight_rgb"
PSNR_CEILING = 100.0  # of identical images; infinity would make every mean infinite
LPIPS_SIDE = 31  # AlexNet's second pooling has nothing left below it
FLAGS = "gt_mean, y, rgb, border=PIXELS, resize=WIDTHxHEIGHT"


@dataclass(frozen=True)
class Protocol:
    """How PSNR and SSIM are taken. Images are float [B, 3, H, W] or [3, H, W] in [0, 1], or uint8 [B, H, W, 3] or
    [H, W, 3], the result first and the original second; figures are float64 [B], one value an image.

    Attributes:
        colour: of what both are taken, RGB or the luma of MATLAB's `rgb2ycbcr`, rounded to levels.
        ssim_form: a key of `SIMILARITIES`.
        depth: results are "rounded" to 8 bits as files are, or stay floats beside originals of 8 or 16 bits.
        aligned: the result is laid over its original first (`restoration.metrics.alignment`).
        gt_mean: it is scaled to the mean grey of its original first.
        border: pixels that are cut off each side.
        resize: (width, height) to which both are resized first, bilinear; None leaves them.
    """

    name: str
    colour: Literal["rgb", "matlab_y"] = "rgb"
    ssim_form: Literal["gaussian", "uniform", "volume"] = "gaussian"
    depth: Literal["rounded", "float_8", "float_16"] = "rounded"
    aligned: bool = False
    gt_mean: bool = False
    border: int = 0
    resize: tuple[int, int] | None = None

    @property
    def takes_floats(self) -> bool:
        """Whether rounding results to 8 bits before would change the figures."""
        return self.depth != "rounded"

    @property
    def similarity(self) -> Similarity:
        return SIMILARITIES[self.ssim_form]

    @property
    def told(self) -> str:
        """The protocol in words, for the head of a table."""
        depth = {"rounded": "8 bits", "float_8": "floats, originals of 8 bits", "float_16": "floats"}[self.depth]
        parts = [
            f"{'RGB' if self.colour == 'rgb' else 'Y of MATLAB'}, {depth}",
            self.similarity.told,
            *(["aligned by ECC"] if self.aligned else []),
            f"GT-mean {'on' if self.gt_mean else 'off'}",
            *([f"border {self.border}"] if self.border else []),
            *([f"resized to {self.resize[0]}x{self.resize[1]}"] if self.resize else []),
        ]
        return "; ".join(parts)

    @property
    def figures(self) -> dict[str, Callable[[Images, Images], Figures]]:
        """What it measures, by the name of a column."""
        found: dict[str, Callable[[Images, Images], Figures]] = {"psnr": self.psnr, "ssim": self.ssim}
        return found | {"aligned": self.alignment} if self.aligned else found

    def psnr(self, x: Images, y: Images) -> Figures:
        """Peak signal-to-noise ratio in dB, at most `PSNR_CEILING`.

        Raises:
            ValueError: shapes that differ, are no images or have no pixel left, a value that is not finite.
        """
        a, b, mask = self._prepared(x, y)
        error = (a - b).square()
        mean = error.flatten(1).mean(1) if mask is None else _masked_mean(error, mask)
        decibel = 10 * torch.log10(255**2 / mean.clamp_min(1e-12))
        return np.asarray(decibel.clamp_max(PSNR_CEILING).cpu().numpy(), dtype=np.float64)

    def ssim(self, x: Images, y: Images) -> Figures:
        """Structural similarity, at most 1.

        Raises:
            ValueError: as `psnr`, or images smaller than the window.
        """
        a, b, mask = self._prepared(x, y)
        least, margin = self.similarity.least_side, self.similarity.margin
        if min(a.shape[-2:]) < least:
            raise ValueError(
                f"SSIM needs images of at least {least} px a side, got {a.shape[-1]}x{a.shape[-2]} (width x height)"
            )
        found = self.similarity.map(a, b)
        if mask is None:
            values = found.flatten(1).mean(1)
        else:
            inner = mask[..., margin : mask.shape[-2] - margin, margin : mask.shape[-1] - margin]
            values = _masked_mean(found, inner)
        return np.asarray(values.cpu().numpy(), dtype=np.float64)

    def alignment(self, x: Images, y: Images) -> Figures:
        """1 of a result that could be aligned, 0 of one that is measured as it was; their mean is the share."""
        a, b = self._levels(x, y)
        return np.asarray([align(*pair).failure is None for pair in _pictures(a, b)], dtype=np.float64)

    def _prepared(self, x: Images, y: Images) -> tuple[Tensor, Tensor, Tensor | None]:
        """Levels that are compared, float64 [B, C, H, W], and which of them count, [B, 1, H, W]; None for all."""
        a, b = self._levels(x, y)
        mask = None
        if self.aligned:
            found = [align(*pair) for pair in _pictures(a, b)]
            a, b = (
                torch.from_numpy(np.stack(side)).movedim(-1, 1).double() * 255
                for side in ([f.result for f in found], [f.original for f in found])
            )
            mask = torch.from_numpy(np.stack([f.mask for f in found]))[:, None].double()
        if self.gt_mean:
            a = _of_equal_mean(a, b)
        if self.border:
            inside = (slice(self.border, -self.border),) * 2
            a, b, mask = a[..., *inside], b[..., *inside], None if mask is None else mask[..., *inside]
            if not a.numel():
                raise ValueError(f"{self.name}: nothing is left of the images within a border of {self.border} px")
        return (a, b, mask) if self.colour == "rgb" else (_matlab_luma(a), _matlab_luma(b), mask)

    def _levels(self, x: Images, y: Images) -> tuple[Tensor, Tensor]:
        if self.depth == "rounded":
            a, b = _rounded(x), _rounded(y)
        else:
            a, b = _exact(x), _exact(y)
            if self.depth == "float_8":
                b = (b * 257).round().div(256).floor()  # the upper half of 16 bits; those of 8 stay as they are
        if a.shape != b.shape:
            raise ValueError(f"{self.name}: the images differ in shape, {tuple(a.shape)} and {tuple(b.shape)}")
        return (a, b) if self.resize is None else (_resized(a, self.resize), _resized(b, self.resize))


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        Protocol("lowlight_rgb"),
        Protocol("derain_y", "matlab_y"),
        Protocol("gopro_matlab", ssim_form="volume"),
        Protocol("realblur_ecc", aligned=True),
        Protocol("dpdd_float_8", ssim_form="uniform", depth="float_8"),
        Protocol("dpdd_float_16", ssim_form="uniform", depth="float_16"),
    )
}


def protocol(name: str = DEFAULT_PROTOCOL) -> Protocol:
    """The protocol of that name, flags behind `+` included.

    Raises:
        ValueError: unknown name or flag; the message lists the known ones.
    """
    base, *flags = name.split("+")
    if base not in PROTOCOLS:
        raise ValueError(f"metric protocol {base!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    changed: dict[str, Any] = {}
    for flag in flags:
        changed |= _flag(name, flag)
    return replace(PROTOCOLS[base], name=name, **changed)


def measure(name: str, x: Images, y: Images) -> dict[str, float]:
    """{"psnr": dB, "ssim": ...} of one image under the protocol `name`, and what else that measures.

    Raises:
        ValueError: unknown protocol, several images, or as `Protocol.ssim`.
    """
    found = {figure: of(x, y) for figure, of in protocol(name).figures.items()}
    if len(found["psnr"]) != 1:
        raise ValueError(f"measure takes one image, got {len(found['psnr'])}; protocol(name).psnr takes a batch")
    return {figure: float(values[0]) for figure, values in found.items()}


def _flag(name: str, flag: str) -> dict[str, Any]:
    key, _, value = flag.partition("=")
    if flag == "gt_mean":
        return {"gt_mean": True}
    if flag in ("y", "rgb"):
        return {"colour": "rgb" if flag == "rgb" else "matlab_y"}
    if key == "border" and value.isdecimal() and int(value):
        return {"border": int(value)}
    sides = value.split("x")
    if key == "resize" and len(sides) == 2 and all(side.isdecimal() and int(side) for side in sides):
        return {"resize": (int(sides[0]), int(sides[1]))}
    raise ValueError(f"metric protocol {name!r}: flag {flag!r} is unknown; there are {FLAGS}")


def _rounded(images: Images) -> Tensor:
    """float64 [B, 3, H, W] of whole levels 0 to 255."""
    device = _check(images)
    pixels = to_uint8(images) if isinstance(images, Tensor) else images
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1))).to(device, torch.float64)


def _exact(images: Images) -> Tensor:
    """float64 [B, 3, H, W] in 0 to 255, not rounded."""
    if not isinstance(images, Tensor):
        return _rounded(images)
    _check(images)
    if not images.isfinite().all():
        raise ValueError("the image holds values that are not finite and can't be compared")
    levels = images.detach().double().clamp(0, 1) * 255
    return levels[None] if levels.ndim == 3 else levels


def _check(images: Images) -> torch.device | str:
    """Where they are. Raises ValueError for what is no batch of RGB images."""
    if not isinstance(images, Tensor) and images.dtype != np.uint8:
        raise ValueError(f"expected a float tensor or uint8 pixels, got an array of {images.dtype}")
    if isinstance(images, Tensor) and (images.ndim < 3 or images.shape[-3] != 3):
        raise ValueError(f"expected images [B, 3, H, W] or [3, H, W], got shape {tuple(images.shape)}")
    channels = images.shape[-3] if isinstance(images, Tensor) else images.shape[-1]
    if images.ndim not in (3, 4) or channels != 3 or 0 in images.shape:
        raise ValueError(f"expected RGB images, got shape {tuple(images.shape)}")
    return images.device if isinstance(images, Tensor) else "cpu"


def _pictures(a: Tensor, b: Tensor) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Each pair as float32 [H, W, 3] in [0, 1]."""
    sides = [(side.cpu().movedim(1, -1) / 255).float().numpy() for side in (a, b)]
    return list(zip(*sides, strict=True))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[B] of [B, C, H, W]; NaN where nothing counts, which is told as a figure that is not finite."""
    return (values * mask).flatten(1).sum(1) / (mask.flatten(1).sum(1) * values.shape[1])


def _of_equal_mean(a: Tensor, b: Tensor) -> Tensor:
    """`a` with the mean grey of `b`; a black picture stays black."""
    grey = a.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    means = [(side * grey).sum(1).flatten(1).mean(1).view(-1, 1, 1, 1) for side in (a, b)]
    return (a * means[1] / means[0].clamp_min(1e-9)).clamp(0, 255)


def _resized(levels: Tensor, size: tuple[int, int]) -> Tensor:
    """By OpenCV, bilinear; whole levels stay whole."""
    import cv2  # here, because machines that only roll out may lack it

    whole = bool((levels == levels.round()).all())
    pictures = levels.cpu().movedim(1, -1).numpy().astype(np.uint8 if whole else np.float64)
    made = np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR) for picture in pictures])
    return torch.from_numpy(made).movedim(-1, 1).to(levels.device, torch.float64)


def _matlab_luma(levels: Tensor) -> Tensor:
    """Y of ITU-R BT.601 in 16..235 as `rgb2ycbcr` gives it for uint8, rounded; [B, 3, H, W] to [B, 1, H, W]."""
    thousandths = levels.new_tensor([65481.0, 128553.0, 24966.0]).view(1, 3, 1, 1)  # whole numbers keep ties exact
    return ((levels * thousandths).sum(1, keepdim=True) / 255_000 + 16.5).floor()  # MATLAB rounds halves up
