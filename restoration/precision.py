"""The number types that a model's networks are kept and computed in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from restoration.backbones.cleaners import Cleaner

if TYPE_CHECKING:
    from restoration.base_models.interface import BaseModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTO = "auto"
NATIVE_BF16 = "RESTORL_NATIVE_BF16"
_BF16_CAPABILITY = 8  # Ampere: the first whose matrix units take bfloat16 (and TF32)


def dtype_of(network: nn.Module) -> torch.dtype:
    """Of its first floating-point parameter, as diffusers' `dtype`, which walks through all modules at each call."""
    return next(p.dtype for p in network.parameters() if p.is_floating_point())


def resolve(dtype: str, device: torch.device | str) -> torch.dtype:
    """The type that a setting names; "auto" is bfloat16 where `device` multiplies it in hardware, else float32.

    That is a CUDA device of capability 8.0 or above, or a CPU with instructions for it (`multiplies_bf16`). A function
    of the device alone, so that rollout and replay on equal devices resolve "auto" equally.

    Raises:
        ValueError: neither "auto" nor one of `DTYPES`.
    """
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != AUTO:
        raise ValueError(f"dtype {dtype!r}: choose {AUTO}, {', '.join(DTYPES)}")
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def slow_here(dtype: torch.dtype, device: torch.device | str) -> str | None:
    """What a user should know who named `dtype` for its speed, where `device` is slower in it; None elsewhere."""
    device = torch.device(device)
    known = device.type == "cpu" or (device.type == "cuda" and torch.cuda.is_available())
    if dtype == torch.bfloat16 and known and not multiplies_bf16(device):
        named = "processor" if device.type == "cpu" else "GPU"
        return f"bfloat16 takes about ten times as long as float32 on a {named} that doesn't multiply it natively"
    if dtype == torch.float16 and device.type == "cpu" and not torch.cpu._is_amx_fp16_supported():
        return "float16 takes a hundred times as long as float32 on a processor that doesn't multiply it natively"
    return None


def enable_tf32() -> None:
    """From here on float32 products on CUDA round their inputs to TF32 (10 bits), convolutions too; elsewhere nothing.

    For a whole process: torch has no narrower switch.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def autocast(device: torch.device | str, dtype: torch.dtype) -> torch.autocast:
    """A context in which products are taken in `dtype`; for float32 it does nothing."""
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


def set_precision(model: BaseModel, dtype: torch.dtype) -> None:
    """Cast the model's networks for restoring; latents, transitions, blending and pictures stay float32.

    float16 ends at 65504: what may exceed that stays float32, which is each cleaner (it sums squares) and each VAE
    whose configuration has `force_upcast`. bfloat16 has float32's range with 8 bits of precision.

    Raises:
        ValueError: a type that is none of `DTYPES`.
    """
    set_frozen_dtype(model, dtype, keep=())


def set_frozen_dtype(model: BaseModel, dtype: torch.dtype, keep: Collection[str] | None = None) -> None:
    """Cast every network's weights and buffers but the policy's parameters `keep`, which become or stay float32.

    What may exceed float16 stays float32 (`set_precision`). A network of which parts are float32 and others are not
    must be run under `autocast`.

    Args:
        keep: names in the policy; None for those that the model's `trainable_names` begin, empty for none. After
            `adapters.make_trainable`, which adds a LoRA, give the names of `adapters.trained_parameters`.

    Raises:
        ValueError: a type that is none of `DTYPES`; a name that the policy doesn't have.
    """
    kept = trainable(model) if keep is None else dict(model.policy.named_parameters())
    if unknown := sorted(set(keep or ()) - kept.keys()):
        raise ValueError(f"{model.name}: the policy has no parameter {unknown[0]}")
    wanted = type_of_each(model, dtype, [p for name, p in kept.items() if keep is None or name in keep])
    for network in networks_of(model):
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(wanted(tensor))


def networks_of(model: BaseModel) -> list[nn.Module]:
    """VAE, policy, cleaner and what else a model runs."""
    return [network for network in vars(model).values() if isinstance(network, nn.Module)]


def trainable(model: BaseModel) -> dict[str, nn.Parameter]:
    """What SFT trains, by its names in the policy: those that begin with one of the model's `trainable_names`."""
    named = model.policy.named_parameters()
    return {name: p for name, p in named if any(re.match(pattern, name) for pattern in model.trainable_names)}


def type_of_each(model: BaseModel, dtype: torch.dtype, kept: Iterable[Tensor]) -> Callable[[Tensor], torch.dtype]:
    """Which type a floating-point tensor of the model shall have: float32 for the `kept`, else `dtype`.

    Raises:
        ValueError: a type that is none of `DTYPES`.
    """
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype {dtype}: choose {', '.join(DTYPES)}")
    full = {id(tensor) for tensor in kept}
    if dtype == torch.float16:
        full |= {
            id(tensor)
            for network in networks_of(model)
            if _overflows(network)
            for tensor in [*network.parameters(), *network.buffers()]
        }
    return lambda tensor: torch.float32 if id(tensor) in full else dtype


def multiplies_bf16(device: torch.device | str) -> bool:
    """Whether the device has instructions for it; of a CPU `RESTORL_NATIVE_BF16` has the last word (`told_bf16`).

    Raises:
        ValueError: the variable is neither 0 nor 1.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= _BF16_CAPABILITY
    if device.type == "cpu":
        told = told_bf16()
        return has_bf16_instructions() if told is None else told
    return False


def has_bf16_instructions() -> bool:
    """Of this processor: avx512_bf16 or amx_bf16."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # torch names amx by its tiles


def told_bf16() -> bool | None:
    """What `RESTORL_NATIVE_BF16` says of the processor, to try here how `auto` runs elsewhere; None where it is unset.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    text = os.environ.get(NATIVE_BF16, "").strip()
    if text not in ("", "0", "1"):
        raise ValueError(f"{NATIVE_BF16}={text} is neither 0 nor 1; leave it out to look at the processor")
    return None if not text else text == "1"


def told_variables() -> dict[str, str]:
    """What other processes need in their environment to resolve "auto" as this one does."""
    return {} if (told := told_bf16()) is None else {NATIVE_BF16: str(int(told))}


def _overflows(network: nn.Module) -> bool:
    return isinstance(network, Cleaner) or any(
        isinstance(part, AutoencoderKL) and part.config.force_upcast for part in network.modules()
    )
