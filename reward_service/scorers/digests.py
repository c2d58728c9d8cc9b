"""Names for weights, as part of a scorer's version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits, of names, shapes, types and values."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:12]


def summary_of(value: Tensor) -> bytes:
    """What tells a tensor from another: type, shape and sums of its bits, which are exact on every device.

    For billions of parameters, which a hash of all bytes would bring back to the host.
    """
    flat = value.detach().contiguous().reshape(-1).view(_INTEGERS[value.element_size()])
    columns = max(1, min(1024, flat.numel()))
    whole = flat.numel() // columns * columns
    total = torch.zeros(columns, dtype=torch.int64, device=value.device)
    # a sum in another type copies what it adds up: on the host in pieces too small to leave holes in the heap
    for rows in flat[:whole].view(-1, columns).split(64 if value.device.type == "cpu" else 2048):
        total += rows.sum(0, dtype=torch.int64)
    said = f"{value.dtype}{tuple(value.shape)}".encode()
    return hashlib.sha256(said + torch.cat([total, flat[whole:].long()]).cpu().numpy().tobytes()).digest()
