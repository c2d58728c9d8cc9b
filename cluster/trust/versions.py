"""Versions of a picture that a reward should tell apart: ladders of damage, and tricks that only please."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from restoration.degradations import seeded_rng
from reward_service.training.distortions import SEVERITIES, coloured, distort, lit, stretched

Image = np.ndarray
LADDERS = {"noise": "noise", "blur": "defocus", "JPEG": "jpeg", "over-smoothing": "smooth"}
"""Kinds of damage, and the distortion that each is."""
TASK = "the task's damage"
"""A ladder of mixtures: so much of the way from the ground truth to the degraded input."""
TRICK_SEVERITIES = (0.1, 0.3, 0.6)


def _sharpen(image: Image, severity: float, image_id: str) -> Image:
    return distort(image, "sharpen", severity, seeded_rng(f"{image_id}/sharpen", 0))


TRICKS: dict[str, Callable[[Image, float, str], Image]] = {
    "sharpen": _sharpen,
    "saturate": lambda image, severity, _: coloured(image, 1 + 1.6 * severity),
    "brighten": lambda image, severity, _: lit(image, 1.2 * severity),
    "contrast": lambda image, severity, _: stretched(image, 1 + 1.3 * severity),
}
"""What pleases a careless judge, and takes a picture further from its ground truth."""


@dataclass(frozen=True)
class Specimen:
    """A held-out picture, uint8 [H, W, 3] each, and what the base model makes of it.

    Attributes:
        rollouts: decision (counted from the noisiest) -> uint8 [K, H, W, 3], its clean estimate of each of K chains;
            empty for pictures that are only edited.
    """

    image_id: str
    gt: np.ndarray
    lq: np.ndarray
    base: np.ndarray
    rollouts: dict[int, np.ndarray]


def ladder(specimen: Specimen, kind: str) -> np.ndarray:
    """The ground truth and it with more and more damage, uint8 [1 + steps, H, W, 3]. Seeded by the picture's id."""
    clean = _float(specimen.gt)
    if kind == TASK:
        away = _float(specimen.lq) - clean
        return _pixels([clean + step * away for step in (0.0, *SEVERITIES)])
    name = LADDERS[kind]
    # anew for each step, so that steps differ in strength alone
    steps = [distort(clean, name, s, seeded_rng(f"{specimen.image_id}/{name}", 0)) for s in SEVERITIES]
    return _pixels([clean, *steps])


def tricked(image: np.ndarray, trick: str, image_id: str) -> np.ndarray:
    """The picture with more and more of the trick, uint8 [steps, H, W, 3]."""
    source = _float(image)
    return _pixels([TRICKS[trick](source, severity, image_id) for severity in TRICK_SEVERITIES])


def _float(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / np.float32(255)


def _pixels(images: list[np.ndarray]) -> np.ndarray:
    return (np.clip(np.stack(images), 0, 1) * 255).round().astype(np.uint8)
