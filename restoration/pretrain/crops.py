"""Random crops of clean photographs held in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from restoration.image_files import IMAGE_SUFFIXES, list_images
from restoration.images import read_image, to_uint8


class PhotoCrops:
    """Crops of random photographs at random scales, flipped and turned at random.

    Args:
        folder: photographs at any depth, all read into memory at once.
        crop: side of a crop in pixels.
        scale: range of the resize factor drawn before cropping.
        seed: seeds the whole sequence of crops.

    Raises:
        FileNotFoundError: the folder holds no photograph.
        ImageError: a photograph that can't be read.
    """

    def __init__(self, folder: Path, crop: int, scale: tuple[float, float], seed: int) -> None:
        files = list_images(folder)
        if not files:
            raise FileNotFoundError(f"no photograph ({', '.join(sorted(IMAGE_SUFFIXES))}) in {folder}")
        self.crop, self.scale = crop, scale
        self.rng = np.random.default_rng(seed)
        self.levels: list[list[Image.Image]] = []  # photographs x a few scales, resized once
        factors = np.geomspace(scale[0], scale[1], 5)
        for file in files:
            photo = Image.fromarray(to_uint8(read_image(file)))
            self.levels.append([self._resized(photo, f) for f in factors])

    def _resized(self, photo: Image.Image, factor: float) -> Image.Image:
        factor = max(factor, self.crop / min(photo.size))
        size = (round(photo.width * factor), round(photo.height * factor))
        return photo if size == photo.size else photo.resize(size, Image.Resampling.LANCZOS)

    def reseed(self, seed: Sequence[int]) -> None:
        """The crops from here on depend on `seed` and not on those before."""
        self.rng = np.random.default_rng(seed)

    def one(self) -> np.ndarray:
        """One uint8 crop [crop, crop, 3]."""
        levels = self.levels[self.rng.integers(len(self.levels))]
        photo = levels[self.rng.integers(len(levels))]
        x = int(self.rng.integers(photo.width - self.crop + 1))
        y = int(self.rng.integers(photo.height - self.crop + 1))
        pixels = np.asarray(photo.crop((x, y, x + self.crop, y + self.crop)))
        pixels = np.rot90(pixels, int(self.rng.integers(4)))
        return np.ascontiguousarray(pixels[:, ::-1] if self.rng.random() < 0.5 else pixels)

    def batch(self, size: int) -> torch.Tensor:
        """float32 [size, 3, crop, crop] in [0, 1]."""
        stacked = np.stack([self.one() for _ in range(size)])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(255)
