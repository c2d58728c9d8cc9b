"""Seeded degradations of clean photographs: rain, motion blur, defocus, low light.

Blur and low light act in linear light, because a sensor integrates there: highlights bloom, shadows drown in
noise. All results lie on the 8-bit grid, so that an image degraded in memory equals the one read from a PNG.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

Kind = Literal["rain", "motion_blur", "defocus", "low_light"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Image = NDArray[np.float32]

GAMMA = 2.2


def seeded_rng(name: str, seed: int) -> np.random.Generator:
    """A generator that depends on `name` (an image id, a task) and `seed` only, equal in every process."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def degrade(image: Image, kind: Kind, severity: float, rng: np.random.Generator) -> Image:
    """The degraded image, float32 [H, W, 3] in [0, 1] on the 8-bit grid.

    Args:
        image: clean sRGB, float32 [H, W, 3] in [0, 1].
        kind: one of `KINDS`.
        severity: in (0, 1]. The mean strength follows it; `rng` draws the details (angle, path, noise).
        rng: the only source of randomness.

    Raises:
        ValueError: unknown kind, severity outside (0, 1], or an array that is no RGB image.
    """
    if kind not in _DEGRADATIONS:
        raise ValueError(f"degradation {kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if not 0 < severity <= 1:
        raise ValueError(f"severity={severity} of {kind}: must lie in (0, 1]")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"degrade({kind}): expected an image [H, W, 3], got shape {image.shape}")
    degraded = _DEGRADATIONS[kind](np.ascontiguousarray(image, dtype=np.float32), float(severity), rng)
    return np.round(np.clip(degraded, 0, 1) * 255).astype(np.float32) / np.float32(255)


def _to_linear(image: Image) -> Image:
    return np.power(np.clip(image, 0, 1), np.float32(GAMMA))


def _to_srgb(linear: Image) -> Image:
    return np.power(np.clip(linear, 0, 1), np.float32(1 / GAMMA))


def _convolve(image: Image, kernel: Image) -> Image:
    # Reflection without repeating the edge; OpenCV can't reflect an image of one pixel, so that one replicates.
    border = cv2.BORDER_REFLECT_101 if min(image.shape[:2]) > 1 else cv2.BORDER_REPLICATE
    return np.asarray(cv2.filter2D(image, -1, kernel, borderType=border), dtype=np.float32)


def _line_kernel(length: float, angle: float, width: float) -> Image:
    """An antialiased segment through the centre, peak 1; angle in radians from the horizontal."""
    radius = int(np.ceil(length / 2 + width))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float32)
    along = np.abs(x * np.cos(angle) + y * np.sin(angle))
    across = np.abs(y * np.cos(angle) - x * np.sin(angle))
    kernel = np.clip((length + 1) / 2 - along, 0, 1) * np.clip((width + 1) / 2 - across, 0, 1)
    return (kernel / kernel.max()).astype(np.float32)


def _rain(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """Streaks of thresholded noise drawn out along one angle a layer, screened over the photograph.

    Light rain is one layer (as Rain100L), heavy rain several of mixed angles (as Rain100H).
    """
    height, width = image.shape[:2]
    layers = 1 + round(3 * severity)
    main_angle = np.pi / 2 + np.deg2rad(rng.uniform(-30, 30))
    veil = np.zeros((height, width), np.float32)
    for _ in range(layers):
        length = rng.uniform(12, 20 + 20 * severity)
        thickness = rng.uniform(1.0, 1.0 + severity)
        angle = main_angle + np.deg2rad(rng.uniform(-12, 12))
        # Share of the picture that one layer covers, before streaks overlap.
        coverage = rng.uniform(0.06, 0.10) + 0.08 * severity
        drops = rng.random((height, width), dtype=np.float32) < coverage / (length * thickness)
        strengths = drops.astype(np.float32) * rng.uniform(0.5, 1.0, (height, width)).astype(np.float32)
        streaks = np.clip(_convolve(strengths, _line_kernel(length, angle, thickness)), 0, 1)
        veil = 1 - (1 - veil) * (1 - streaks)
    opacity = rng.uniform(0.4, 0.5) + 0.25 * severity
    return np.asarray(1 - (1 - image) * (1 - opacity * veil[..., None]), dtype=np.float32)


def _camera_path(length: float, rng: np.random.Generator, points: int = 64) -> NDArray[np.float64]:
    """A smooth path of `length` pixels around the origin, [points, 2] (x, y): the turn rate is a slow random walk."""
    turns = np.convolve(rng.normal(0, 1, points), np.hanning(17) / np.hanning(17).sum(), mode="same")
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turns) * 0.12
    speed = 1 + 0.4 * np.sin(np.linspace(0, 2 * np.pi, points) * rng.uniform(0.5, 1.5) + rng.uniform(0, 2 * np.pi))
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1) * speed[:, None], axis=0)
    path *= length / speed.sum()
    return np.asarray(path - path.mean(0))


def _path_kernel(path: NDArray[np.float64]) -> Image:
    """The time a camera path spends at each pixel, bilinearly shared; sums to 1."""
    radius = int(np.ceil(np.abs(path).max())) + 1
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    base = np.floor(path).astype(int)
    fraction = path - base
    for dx in (0, 1):
        for dy in (0, 1):
            weight = np.abs(1 - dx - fraction[:, 0]) * np.abs(1 - dy - fraction[:, 1])
            np.add.at(kernel, (base[:, 1] + dy + radius, base[:, 0] + dx + radius), weight)
    return (kernel / kernel.sum()).astype(np.float32)


def _motion_blur(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """The average, in linear light, over a smooth camera path of 6 to 30 pixels."""
    length = 6 + 24 * severity * rng.uniform(0.8, 1.0)
    return _to_srgb(_convolve(_to_linear(image), _path_kernel(_camera_path(length, rng))))


def _disk_kernel(radius: float) -> Image:
    """An antialiased disk that sums to 1."""
    half = int(np.ceil(radius + 0.5))
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return (kernel / kernel.sum()).astype(np.float32)


def _defocus(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """Blur by the image of the aperture, a disk of radius 1.5 to 8 pixels, in linear light."""
    radius = 1.5 + 6.5 * severity * rng.uniform(0.8, 1.0)
    return _to_srgb(_convolve(_to_linear(image), _disk_kernel(radius)))


def _low_light(image: Image, severity: float, rng: np.random.Generator) -> Image:
    """Exposure k of 0.3 down to 0.02, then shot and read noise, all in linear light."""

    def between(mild: float, severe: float) -> float:
        position = np.clip(severity + rng.uniform(-0.1, 0.1), 0, 1)
        return float(mild * (severe / mild) ** position)

    exposure, photons, read_noise = between(0.3, 0.02), between(2000, 200), between(0.001, 0.01)
    exposed = _to_linear(image) * np.float32(exposure)
    counted = rng.poisson(exposed * photons).astype(np.float32) / np.float32(photons)
    noisy = counted + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(read_noise)
    return _to_srgb(noisy)


_DEGRADATIONS: dict[Kind, Callable[[Image, float, np.random.Generator], Image]] = {
    "rain": _rain,
    "motion_blur": _motion_blur,
    "defocus": _defocus,
    "low_light": _low_light,
}
