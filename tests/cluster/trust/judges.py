"""Rewards of known character, and pictures to try them on."""

from __future__ import annotations

import cv2
import numpy as np

from cluster.trust.versions import Specimen
from reward_service.probe_pictures import probe_pictures

SIDE = 48


def specimens(count: int = 4, rollouts: int = 5) -> list[Specimen]:
    """Crops of a scene as ground truth; the input is noisy, the base output soft, rollouts soft and noisy."""
    scene = probe_pictures(192)[0].astype(np.float32)
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        y, x = 40 * (i // 4), 40 * (i % 4)
        gt = scene[y : y + SIDE, x : x + SIDE]
        soft = cv2.GaussianBlur(gt, (0, 0), 1.2)
        chains = np.stack([soft + rng.normal(0, 2 + 3 * k, gt.shape) for k in range(rollouts)])
        noisy = gt + rng.normal(0, 30, gt.shape)
        found.append(Specimen(f"p{i}", _u8(gt), _u8(noisy), _u8(soft), {0: _u8(chains + 20), 1: _u8(chains)}))
    return found


def nearness(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
    """What a reward should be."""
    return -np.square(images.astype(np.float64) - gts).mean((1, 2, 3))


def distance(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
    return -nearness(images, gts)


def colourfulness(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
    """Likes colour beside quality, so that colour buys it."""
    x = images.astype(np.float64)
    return nearness(images, gts) / 100 + 10 * (x.max(-1) - x.min(-1)).mean((1, 2))


def roughness(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
    """Takes noise for detail."""
    x = images.astype(np.float64)
    return np.abs(np.diff(x, axis=1)).mean((1, 2, 3))


def indifference(images: np.ndarray, gts: np.ndarray) -> np.ndarray:
    return np.zeros(len(images))


def _u8(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 255).round().astype(np.uint8)
