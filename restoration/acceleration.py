"""What makes a model's networks faster on a GPU and changes nothing but rounding."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

from restoration.base_models.interface import BaseModel
from restoration.base_models.networks.structure import StructureEncoder
from restoration.precision import networks_of

CONVOLUTIONAL = (UNet2DConditionModel, ControlNetModel, StructureEncoder)


def accelerate(model: BaseModel, device: torch.device | str, compile: bool = False) -> list[str]:
    """Prepare a model that acts or restores on `device`; returns what was done, in words.

    On CUDA, networks of convolutions keep their weights in channels_last, which cuDNN's half-precision kernels take;
    on a CPU only the VAE does (`LatentModel`), where it was measured to help. Call it after `make_trainable` and
    before the first pass.

    Args:
        compile: hand each network of the policy to torch.compile, which compiles at its first pass, for minutes, and
            once more for each size of pictures. It needs a C compiler, on CUDA Triton, too.

    Raises:
        RuntimeError: `compile` on a machine where torch can't.
    """
    done = []
    if torch.device(device).type == "cuda":
        for network in networks_of(model):
            for part in network.modules():
                if isinstance(part, CONVOLUTIONAL):
                    nn.Module.to(part, memory_format=torch.channels_last)
                    done.append(f"{type(part).__name__} in channels_last")
    if compile:
        _require_compiler(torch.device(device))
        for name, network in _runs_alone(model.policy):
            network.compile(dynamic=False)
            done.append(f"{name} compiled")
    return done


def _runs_alone(policy: nn.Module) -> list[tuple[str, nn.Module]]:
    """The networks that a policy's own forward calls, so that the casts between them stay as they are."""
    return [(name, child) for name, child in policy.named_children() if any(True for _ in child.parameters())]


def _require_compiler(device: torch.device) -> None:
    from torch.utils._triton import has_triton

    problem: Any = None
    if device.type == "cuda" and not has_triton():
        problem = "torch finds no Triton for this GPU"
    elif device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            problem = "torch finds no C++ compiler"
    if problem:
        raise RuntimeError(f"rollout.compile=true: {problem}; install it, or set rollout.compile=false")
