"""Pickles written opcode by opcode, as an attacker would, and classes of libraries that aren't here."""

from __future__ import annotations

import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class Calls:
    """Pickled, it asks for `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.asked = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.asked


@contextmanager
def library(**classes: type) -> Iterator[None]:
    """Inside, the classes can be pickled as `foreign_library.NAME`; after it there is no such module."""
    module = types.ModuleType("foreign_library")
    for name, cls in classes.items():
        cls.__module__, cls.__qualname__, cls.__name__ = module.__name__, name, name
        setattr(module, name, cls)
    sys.modules[module.__name__] = module
    try:
        yield
    finally:
        del sys.modules[module.__name__]


class Attributes(dict[str, Any]):
    """As Lightning's AttributeDict: a mapping with a state."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.frozen = True


class Callback:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.best, self.scores = tensor, [1, 2]


class Slotted:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 3

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (1,), {"b": 2}

    def __new__(cls, *args: Any, **kwargs: Any) -> Slotted:
        return super().__new__(cls)


def zipped(content: bytes, file: Path, **records: bytes) -> Path:
    """A zip archive as torch.save writes it, around a pickle."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/version", b"3\n")
        for key, value in records.items():
            archive.writestr(f"x/data/{key.removeprefix('k')}", value)
    return file


def text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def name(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL, whose name may have dots."""
    return text(module) + text(attribute) + pickle.STACK_GLOBAL


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def pickled(*opcodes: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + b"".join(opcodes) + pickle.STOP


def beside(*opcodes: bytes) -> bytes:
    """A state dict, and the object beside it."""
    storage = text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + pickle.BININT1 + b"\x02"
    tensor = call(
        name("torch._utils", "_rebuild_tensor_v2"),
        pickle.MARK + storage + pickle.TUPLE + pickle.BINPERSID,
        pickle.BININT1 + b"\x00",
        pickle.BININT1 + b"\x02" + pickle.TUPLE1,
        pickle.BININT1 + b"\x01" + pickle.TUPLE1,
        pickle.NEWFALSE,
        pickle.EMPTY_DICT,
    )
    items = text("a") + tensor + text("other") + b"".join(opcodes)
    return pickled(pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS)


TWO = struct.pack("<2f", 1.0, 2.0)
"""The values of the tensor in `beside`."""
