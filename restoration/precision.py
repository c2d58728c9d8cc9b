"""The number type that a model's networks compute in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from torch import nn

from restoration.backbones.cleaners import Cleaner

if TYPE_CHECKING:
    from restoration.base_models.interface import BaseModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(network: nn.Module) -> torch.dtype:
    """Of its first floating-point parameter, as diffusers' `dtype`, which walks through all modules at each call."""
    return next(p.dtype for p in network.parameters() if p.is_floating_point())


def set_precision(model: BaseModel, dtype: torch.dtype) -> None:
    """Cast the model's networks for restoring; latents, transitions, blending and pictures stay float32.

    float16 ends at 65504: what may exceed that stays float32, which is each cleaner (it sums squares) and each VAE
    whose configuration has `force_upcast`. bfloat16 has float32's range with 8 bits of precision.

    Raises:
        ValueError: a type that is none of `DTYPES`.
    """
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype {dtype}: choose {', '.join(DTYPES)}")
    for network in vars(model).values():
        if isinstance(network, nn.Module):
            fits = dtype != torch.float16 or not _overflows(network)
            nn.Module.to(network, dtype if fits else torch.float32)  # diffusers' own warns that it casts


def _overflows(network: nn.Module) -> bool:
    return isinstance(network, Cleaner) or any(
        isinstance(part, AutoencoderKL) and part.config.force_upcast for part in network.modules()
    )
