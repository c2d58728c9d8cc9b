"""How much memory a picture takes that a model restores whole."""

from __future__ import annotations

from pathlib import Path

import torch

from restoration.base_models.interface import BaseModel
from restoration.image_opening import free_memory, tell_once


def bytes_a_pixel(model: BaseModel) -> int:
    """At the peak, in the decoder's last level: three tensors of its own width and three as wide as the level before.

    (Measured with the demo model on a CPU: 1150 bytes, these are 1152.) 0 of a model without an autoencoder, of which
    nothing is known.
    """
    vae = getattr(model, "vae", None)
    if vae is None:
        return 0
    inner, *outer = vae.config.block_out_channels[:2]
    return 3 * (inner + (outer or [inner])[0]) * next(vae.parameters()).element_size()


def warn_of_whole(path: Path, size: tuple[int, int], model: BaseModel, device: torch.device | str) -> None:
    """Tell a picture of (height, width) that takes more than half of the device's free memory when restored whole."""
    place = torch.device(device)
    needed = size[0] * size[1] * bytes_a_pixel(model)
    free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else free_memory()
    if needed > free / 2:
        tell_once(
            f"{path}: {size[1]}x{size[0]} pixels restored whole take about {needed / 1e9:.1f} GB, of "
            f"{free / 1e9:.1f} GB that are free; restore them in tiles (--tile 512)"
        )
