"""What a photograph may suffer on its way to a scorer: the restoration tasks, and what restorers add themselves.

A scorer that only knows weather and blur can be pleased by sharpening, saturation or decoder noise; so these
are taught as damage too. Severity lies in (0, 1] and means about the same visible harm in every kind.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from restoration.degradations import KINDS as TASKS
from restoration.degradations import degrade

Image = NDArray[np.float32]
Distortion = Callable[[Image, float, np.random.Generator], Image]
SEVERITIES = (0.1, 0.325, 0.55, 0.775, 1.0)
"""Steps of a kind, from hardly visible to strong."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _f32(x: object) -> Image:
    return np.asarray(x, dtype=np.float32)


def _blurred(image: Image, sigma: float) -> Image:
    return _f32(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101))


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def noise(image: Image, severity: float, rng: np.random.Generator) -> Image:
    sigma = 0.01 + 0.14 * severity
    shape = image.shape if rng.random() < 0.7 else (*image.shape[:2], 1)
    return _f32(image + rng.normal(0, sigma, shape))


def jpeg(image: Image, severity: float, rng: np.random.Generator) -> Image:
    quality = round(85 - 77 * severity**0.6)
    pixels = (np.clip(image[..., ::-1], 0, 1) * 255).round().astype(np.uint8)
    _, code = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None  # OpenCV wrote it one line above
    return _f32(_f32(decoded)[..., ::-1] / 255)


def smooth(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """What averaging restorers do: fine texture goes, edges may stay."""
    way = rng.integers(4)
    if way == 0:
        return _blurred(image, 0.45 + 1.4 * severity)
    if way == 1:
        return _f32(cv2.bilateralFilter(image, -1, 0.05 + 0.25 * severity, 1 + 2.5 * severity))
    if way == 2:
        pixels = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
        filtered = _f32(cv2.medianBlur(pixels, 3 if severity < 0.5 else 5)) / 255
        weight = 0.5 + 0.5 * (severity * 2 % 1 if severity < 1 else 1)
        return _f32(image + weight * (filtered - image))
    factor = 1.15 + 1.8 * severity
    size = (max(8, round(image.shape[1] / factor)), max(8, round(image.shape[0] / factor)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return _f32(cv2.resize(small, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_CUBIC))


def sharpen(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """Unsharp masking of the photograph, from crisp to halos."""
    sigma = rng.uniform(0.6, 2.5)
    amount = (0.25 + 3.2 * severity) * (1.3 if sigma < 1.2 else 0.8)
    return _f32(image + amount * (image - _blurred(image, sigma)))


def resharpen(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """Softened, then sharpened past the original: the cheap way to please an edge counter."""
    sigma = rng.uniform(0.6, 1.4)
    soft = _blurred(image, sigma)
    return _f32(soft + (0.8 + 5 * severity) * (soft - _blurred(soft, sigma * rng.uniform(1, 2))))


def ringing(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """A sharp cut in the spectrum: ripples beside edges."""
    pad = 16
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    spectrum = np.fft.rfft2(padded, axes=(0, 1))
    fy, fx = np.fft.fftfreq(padded.shape[0])[:, None], np.fft.rfftfreq(padded.shape[1])[None]
    cut = 0.42 - 0.3 * severity
    radius = np.hypot(fy, fx) if rng.random() < 0.6 else np.maximum(abs(fy), abs(fx))
    spectrum *= (1 / (1 + (radius / cut) ** 24))[..., None]
    return _f32(np.fft.irfft2(spectrum, s=padded.shape[:2], axes=(0, 1)))[pad:-pad, pad:-pad]


def saturation(image: Image, severity: float, rng: np.random.Generator) -> Image:
    return coloured(image, 1 + 1.6 * severity if rng.random() < 0.6 else 1 - 0.95 * severity)


def coloured(image: Image, factor: float) -> Image:
    """Colours so many times as far from grey."""
    grey = (image @ LUMA)[..., None]
    return _f32(grey + factor * (image - grey))


def brightness(image: Image, severity: float, rng: np.random.Generator) -> Image:
    return lit(image, _sign(rng) * 1.2 * severity)


def lit(image: Image, stops: float) -> Image:
    """So many stops brighter; negative: darker."""
    return _f32(image * 2**stops)


def contrast(image: Image, severity: float, rng: np.random.Generator) -> Image:
    return stretched(image, 1 + 1.3 * severity if rng.random() < 0.5 else 1 - 0.7 * severity)


def stretched(image: Image, factor: float) -> Image:
    """Levels so many times as far from their mean."""
    mean = image.mean()
    return _f32(mean + factor * (image - mean))


def gamma(image: Image, severity: float, rng: np.random.Generator) -> Image:
    return _f32(np.clip(image, 0, 1) ** (2.2 ** (_sign(rng) * severity)))


def cast(image: Image, severity: float, rng: np.random.Generator) -> Image:
    direction = rng.normal(size=3)
    direction -= direction.mean()
    direction /= np.abs(direction).max() + 1e-6
    return _f32(image * (1 + 0.45 * severity * direction))


def _field(shape: tuple[int, ...], cell: int, rng: np.random.Generator, order: int) -> Image:
    height, width, channels = shape
    coarse = rng.normal(size=(-(-height // cell) + 1, -(-width // cell) + 1, channels)).astype(np.float32)
    size = (coarse.shape[1] * cell, coarse.shape[0] * cell)
    grown = _f32(cv2.resize(coarse, size, interpolation=order))
    y, x = rng.integers(0, cell, 2)
    return grown[y : y + height, x : x + width]


def latent_noise(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """Noise of a latent grid after decoding: blotches of 2 to 8 pixels, grey or coloured."""
    cell = int(rng.choice([2, 3, 4, 8]))
    order = int(rng.choice([cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC]))
    field = _field((*image.shape[:2], 3), cell, rng, order)
    if rng.random() < 0.5:
        field = 0.8 * field[..., :1] + 0.2 * field
    return _f32(image + (0.012 + 0.11 * severity) * field)


def warp(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """Edges that wobble, as decoders draw them."""
    height, width = image.shape[:2]
    shift = (0.3 + 2.2 * severity) * _field((height, width, 2), int(rng.choice([4, 6, 8])), rng, cv2.INTER_CUBIC)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    border = cv2.BORDER_REFLECT_101
    return _f32(cv2.remap(image, x + shift[..., 0], y + shift[..., 1], cv2.INTER_LINEAR, borderMode=border))


def checkerboard(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """The grid of strided upsampling, strongest in texture."""
    period = int(rng.choice([2, 4, 8]))
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    tile = rng.normal(size=(period, period, 3 if rng.random() < 0.4 else 1))
    tile = (tile - tile.mean((0, 1))) / (tile.std((0, 1)) + 1e-6)
    texture = np.abs(image - _blurred(image, 2)).mean(2, keepdims=True)
    strength = (0.006 + 0.06 * severity) * (0.5 + texture / (texture.mean() + 1e-3) / 2)
    return _f32(image + strength * tile[y % period, x % period])


def _task(kind: str) -> Distortion:
    return lambda image, severity, rng: degrade(image, kind, severity, rng)  # type: ignore[arg-type]


DISTORTIONS: dict[str, Distortion] = {kind: _task(kind) for kind in TASKS} | {
    f.__name__: f
    for f in (noise, jpeg, smooth, sharpen, resharpen, ringing, saturation, brightness, contrast, gamma, cast)
    + (latent_noise, warp, checkerboard)
}


def distort(image: Image, kind: str, severity: float, rng: np.random.Generator) -> Image:
    """float32 [H, W, 3] in [0, 1] -> the same, on the 8-bit grid. `kind` may be "a+b": one after the other.

    Raises:
        ValueError: unknown kind.
    """
    for part in kind.split("+"):
        if part not in DISTORTIONS:
            raise ValueError(f"distortion {part!r} is unknown; choose of {', '.join(DISTORTIONS)}")
        image = np.clip(DISTORTIONS[part](np.ascontiguousarray(image), severity, rng), 0, 1)
    return np.round(image * 255).astype(np.float32) / np.float32(255)
