"""Devices by the names that users give them."""

from __future__ import annotations

from typing import Any


def device_of(name: str, elsewhere: bool = False) -> str:
    """`name`, or for "auto" cuda where torch finds one, else cpu; arguments and errors as `check_device`."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    check_device(name, elsewhere)
    return name


def check_device(name: Any, elsewhere: bool = False) -> None:
    """Whether torch can compute on the device of that name.

    Args:
        elsewhere: other machines compute, so that a GPU need not be on this one.

    Raises:
        ValueError: no such device, or no such one on this machine.
    """
    import torch

    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={name}: no device; give cpu, cuda, or one of several GPUs as cuda:1") from error
    if device.type == "cuda" and not elsewhere and (device.index or 0) >= (there := torch.cuda.device_count()):
        raise ValueError(
            f"device={name}: torch finds {there or 'no'} GPU{'s' * (there != 1)} here; give cpu, or another"
        )
