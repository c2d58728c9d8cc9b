"""Tensors written as a safetensors file piece by piece; the library itself builds the whole file in memory first."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from learner.checkpoint import Sink

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensor_writer(tensors: Mapping[str, Tensor]) -> Callable[[Sink], None]:
    """Writes `tensors` as a safetensors file, holding a copy of at most one of them at a time.

    They are read when the writer is called and must not change until it returns. One that is not contiguous or not
    on the CPU is copied for as long as it is written.

    Raises:
        ValueError: a dtype that the format doesn't have, by tensor name.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}; a safetensors file holds none such")
    # The widest first, so that each is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))

    def write(sink: Sink) -> None:
        entries, end = {}, 0
        for name, tensor in ordered:
            begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
            entries[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8)
        sink.write(len(header).to_bytes(8, "little") + header)
        for _, tensor in ordered:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            if flat.numel():
                sink.write(flat.view(torch.uint8).numpy().data)

    return write
