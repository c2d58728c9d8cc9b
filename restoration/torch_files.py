"""The two formats of `torch.save`, without unpickling code: a zip archive, and before torch 1.6 a stream of pickles.

Tensors lie in the mapped file, read where they are used; only what is compressed or unaligned is copied.
"""

from __future__ import annotations

import io
import mmap
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from restoration.file_kinds import WEIGHTS_SUFFIXES, first
from restoration.unpickling import Module, Unpickled, UnpicklingError, unpickle

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class OtherFile(ValueError):
    """No file of weights; the message says what it is, as the rest of a sentence about it."""


def read_zip(file: Path, meta: bool = False, programs: bool = False) -> Unpickled:
    """What torch.save wrote into a zip archive.

    Args:
        meta: tensors have no values, and nothing but names, shapes and types is read.
        programs: of a TorchScript program the tensors of its modules are read, too; nothing of it is run.

    Raises:
        OtherFile: another archive, or a program.
        UnpicklingError: cut off or damaged.
        OSError, zipfile.BadZipFile, zlib.error, RuntimeError: unreadable.
    """
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        root = _root(records)
        program = f"{root}constants.pkl" in records or any(name.startswith(f"{root}code/") for name in records)
        if program and not programs:
            raise OtherFile(
                "is a TorchScript program, not weights, and is not run: save its state_dict() as .safetensors with the "
                "library it came from"
            )
        order = archive.read(f"{root}byteorder").decode("latin-1") if f"{root}byteorder" in records else sys.byteorder
        _check_order(order)
        found: dict[str, torch.UntypedStorage] = {}
        mapped = None if meta else _mapped(file)

        def find(key: str, dtype: torch.dtype, count: int) -> torch.UntypedStorage:
            name, size = f"{root}data/{key}", count * dtype.itemsize
            if name not in records or records[name].file_size < size:
                raise UnpicklingError(f"the values {name} are missing or cut off")
            if key not in found:
                found[key] = _storage(archive, records[name], mapped, dtype)
            return found[key]

        with archive.open(f"{root}data.pkl") as stream:
            content = stream.read()
        found_in = unpickle(io.BytesIO(content), find, modules=program)
        return Unpickled(_tensors_of(found_in.value), (), found_in.tensors) if program else found_in


def _tensors_of(program: Any) -> dict[str, torch.Tensor]:
    """The tensors of its modules, named as in its state_dict()."""
    found: dict[str, torch.Tensor] = {}
    waiting, seen = [("", program)], set()
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, Module) or id(module) in seen:  # what holds itself would never end
            continue
        seen.add(id(module))
        for name, value in module.items():
            if isinstance(value, torch.Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, Module):
                waiting.append((f"{prefix}{name}.", value))
    return found


def _root(records: dict[str, zipfile.ZipInfo]) -> str:
    """What stands before the names of torch's records."""
    roots = [name.removesuffix("data.pkl") for name in records if name.endswith("data.pkl") and name.count("/") <= 1]
    packed = [n for n, info in records.items() if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    if packed:
        raise OtherFile(
            f"holds {first(packed)} in a compression that torch.save doesn't write: pack it without, or anew"
        )
    if len(roots) != 1:
        names = [name for name in records if not name.endswith("/")]
        inside = [n for n in names if n.lower().endswith(WEIGHTS_SUFFIXES)]
        remedy = f"unpack it and give {first(inside)}" if inside else "give the file of weights"
        raise OtherFile(f"is a zip archive, not one of torch.save (it holds {first(names) or 'nothing'}): {remedy}")
    return roots[0]


def _storage(
    archive: zipfile.ZipFile, record: zipfile.ZipInfo, mapped: torch.UntypedStorage | None, dtype: torch.dtype
) -> torch.UntypedStorage:
    if mapped is None:
        return torch.UntypedStorage(record.file_size, device="meta")
    if record.file_size == 0:
        return torch.UntypedStorage(0)
    if record.compress_type != zipfile.ZIP_STORED:
        return _copied(archive.read(record))
    stream = cast(BinaryIO, archive.fp)
    stream.seek(record.header_offset)
    magic, name, extra = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    begin = record.header_offset + _LOCAL_HEADER.size + name + extra
    if magic != b"PK\x03\x04" or begin + record.file_size > mapped.nbytes():
        raise UnpicklingError(f"the values {record.filename} are missing or cut off")
    return _part(mapped, begin, record.file_size, dtype)


def read_legacy(file: Path, meta: bool = False) -> Unpickled:
    """What torch.save wrote before torch 1.6; arguments and errors as `read_zip`."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        stream = cast(BinaryIO, content)
        begun = unpickle(stream)
        if begun.value != LEGACY_MAGIC:
            told = f" (of {first(begun.left_out)})" if begun.left_out else ""
            raise OtherFile(
                f"is a pickle{told} that torch.save didn't write: save the tensors in it as .safetensors with the "
                "program it came from"
            )
        if (protocol := unpickle(stream).value) != _LEGACY_PROTOCOL:
            raise OtherFile(f"is of an unknown format {protocol} of torch.save")
        system = unpickle(stream).value
        little = not isinstance(system, dict) or system.get("little_endian", True)
        _check_order("little" if little else "big")
        begin = stream.tell()
        sizes: dict[str, tuple[torch.dtype, int]] = {}
        empty: dict[str, torch.UntypedStorage] = {}

        def measure(key: str, dtype: torch.dtype, count: int) -> torch.UntypedStorage:
            sizes.setdefault(key, (dtype, count))
            if sizes[key] != (dtype, count):
                raise UnpicklingError(f"storage {key} has two sizes")
            if count * dtype.itemsize > len(content):
                raise UnpicklingError(f"storage {key} is cut off")
            if key not in empty:
                empty[key] = torch.UntypedStorage(count * dtype.itemsize, device="meta")
            return empty[key]

        shapes = unpickle(stream, measure)
        places = _places(content, unpickle(stream).value, sizes)
        if meta:
            return shapes
        found: dict[str, torch.UntypedStorage] = {}
        mapped = _mapped(file)

        def find(key: str, dtype: torch.dtype, count: int) -> torch.UntypedStorage:
            if key not in found:
                found[key] = _part(mapped, places[key], count * dtype.itemsize, dtype)
            return found[key]

        stream.seek(begin)
        return unpickle(stream, find)


def _places(content: mmap.mmap, keys: Any, sizes: dict[str, tuple[torch.dtype, int]]) -> dict[str, int]:
    """Where the values of each storage begin, in bytes; each stands behind its number of elements, an int64."""
    if not isinstance(keys, list) or set(map(str, keys)) != sizes.keys() or len(keys) != len(sizes):
        raise UnpicklingError("its list of storages is not that of its tensors")
    places, at = {}, content.tell()
    for key in map(str, keys):
        dtype, count = sizes[key]
        end = at + 8 + count * dtype.itemsize
        if end > len(content):
            raise UnpicklingError(f"it is cut off: {len(content)} bytes, at least {end} belong to it")
        if struct.unpack_from("<q", content, at) != (count,):
            raise UnpicklingError(f"storage {key} has two sizes")
        places[key], at = at + 8, end
    return places


def _mapped(file: Path) -> torch.UntypedStorage:
    """The file's bytes, read when they are used; writing to them leaves the file as it is."""
    return cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(file), False, file.stat().st_size))


def _part(mapped: torch.UntypedStorage, begin: int, size: int, dtype: torch.dtype) -> torch.UntypedStorage:
    if size == 0:
        return torch.UntypedStorage(0)
    part = cast(torch.UntypedStorage, mapped[begin : begin + size])
    return part if begin % dtype.itemsize == 0 else cast(torch.UntypedStorage, part.clone())


def _copied(content: bytes) -> torch.UntypedStorage:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()


def _check_order(order: str) -> None:
    if order not in ("little", "big"):
        raise UnpicklingError("its byte order is neither little nor big")
    if order != sys.byteorder:
        raise OtherFile(
            f"was written by a {order}-endian machine, this one is {sys.byteorder}-endian: save it anew there"
        )
