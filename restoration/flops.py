"""How much arithmetic a model's passes take, counted on the meta device: products and convolutions, in FLOP."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from restoration.adapters import AdaptSettings, enable_checkpointing, make_trainable
from restoration.base_models.latent import LatentModel


class Flops(TorchDispatchMode):
    """Inside it, `total` adds up what products and convolutions take; a multiplication and an addition are two."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=made)
        return made


@dataclass(frozen=True)
class PassFlops:
    """FLOP of a picture, or of a row.

    Attributes:
        condition, decode: of a picture.
        denoise: of a row and a step, guidance included.
        replay, sft: of a row, forward and backward, with guidance and without; recomputed activations included.
    """

    condition: int
    denoise: int
    decode: int
    replay: int
    sft: int


def pass_flops(
    skeleton: LatentModel,
    adapt: AdaptSettings,
    height: int,
    width: int,
    *,
    guidance_scale: float = 1.0,
    checkpointing: bool = False,
) -> PassFlops:
    """Of pictures of this size.

    Args:
        skeleton: as of `describe`; it is left as it is.
        guidance_scale: of the sampler.
        checkpointing: activations are recomputed in the backward pass.
    """
    model = copy.deepcopy(skeleton)
    with torch.no_grad():
        with Flops() as conditioned:
            condition = model.condition(torch.empty(1, 3, height, width, device="meta"))
        x_t, times = torch.empty(condition.latent.shape, device="meta"), torch.empty(1, device="meta")
        with Flops() as denoised:
            model.denoise(x_t, times, condition, guidance_scale)
        with Flops() as decoded:
            model.decode(condition.latent, condition)
    with torch.device("meta"):
        make_trainable(model, adapt, keep_reference=False)
    if checkpointing:
        enable_checkpointing(model)

    def trained(scale: float) -> int:
        with Flops() as counted:
            model.denoise(x_t, times, condition, scale).square().mean().backward()  # type: ignore[no-untyped-call]
        return counted.total

    sft = trained(1.0)
    replay = sft if guidance_scale == 1 else trained(guidance_scale)
    return PassFlops(conditioned.total, denoised.total, decoded.total, replay, sft)
