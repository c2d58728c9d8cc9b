"""Photographs small enough that a stand-in of any public set is made in a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from restoration.datasets.registry import SETS

EVERY = [(name, layout.name) for name, of in SETS.items() for layout in of.layouts]
SIDE, TRAIN, TEST = 32, 4, 4


def photos(folder: Path) -> Path:
    """Two smooth, textured photographs a split."""
    rng = np.random.default_rng(0)
    for split in ("train", "heldout"):
        (folder / split).mkdir(parents=True)
        for name in ("a", "b"):
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
            coarse.resize((192, 144), Image.Resampling.BICUBIC).save(folder / split / f"{split}-{name}.png")
    return folder
