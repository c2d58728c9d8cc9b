"""What this machine computes with: NVIDIA GPUs, whether the installed torch can use them, and the processor."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from cluster.config.configure import ConfigError
from restoration.precision import multiplies_bf16

ADVICE = "install a newer driver, or a torch that was built for this one"


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        gpus: NVIDIA devices that processes may see.
        trouble: why torch can't use them, or empty.
        bf16: whether the processor multiplies bfloat16 natively. Of GPUs that can't be asked without taking one.
    """

    gpus: int = 0
    trouble: str = ""
    bf16: bool = True


def this_machine(dev: Path = Path("/dev")) -> Machine:
    """Of this machine. Looks at device files first, so that one without a GPU costs nothing.

    Raises:
        ConfigError: `RESTORL_NATIVE_BF16` is neither 0 nor 1.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "none", "NoDevFiles")
    # WSL has one file for all of its GPUs.
    count = len(list(dev.glob("nvidia[0-9]*"))) or len(list(dev.glob("dxg")))
    try:
        bf16 = multiplies_bf16("cpu")
    except ValueError as error:
        raise ConfigError.of(str(error)) from None
    return Machine(bf16=bf16) if hidden or not count else Machine(count, torch_trouble(), bf16)


def torch_trouble() -> str:
    """Why the installed torch finds no usable CUDA device, or empty."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return ""
    said = " ".join(str(w.message).split(". Please update", 1)[0].strip() for w in caught)
    return f"torch {torch.__version__} needs CUDA {torch.version.cuda}" + (f" ({said})" if said else "")
