"""Devices by the names that users give them."""

from __future__ import annotations

from typing import Any


def check_device(name: Any) -> None:
    """Whether torch can compute on the device of that name, here.

    Raises:
        ValueError: no such device, or no such one on this machine.
    """
    import torch

    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={name}: no device; give cpu, cuda, or one of several GPUs as cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= (there := torch.cuda.device_count()):
        raise ValueError(
            f"device={name}: torch finds {there or 'no'} GPU{'s' * (there != 1)} here; give cpu, or another"
        )
