"""Whether this machine has NVIDIA GPUs, and whether the installed torch can use them."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

ADVICE = "install a newer driver, or a torch that was built for this one"


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        gpus: NVIDIA devices that processes may see.
        trouble: why torch can't use them, or empty.
    """

    gpus: int = 0
    trouble: str = ""


def this_machine(dev: Path = Path("/dev")) -> Machine:
    """Of this machine. Looks at device files first, so that one without a GPU costs nothing."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "none", "NoDevFiles")
    # WSL has one file for all of its GPUs.
    count = len(list(dev.glob("nvidia[0-9]*"))) or len(list(dev.glob("dxg")))
    return Machine() if hidden or not count else Machine(count, torch_trouble())


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
