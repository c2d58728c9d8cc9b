"""Is a picture file whole? From its headers and its end, in a few small reads, so that a million files can be asked.

Cut files (a full disk, a broken download) have good headers: sizes, modes and pairs are all there, and only decoding,
hours later, would find that the rest is not. What is damaged in the middle only decoding finds: `undecodable`.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from restoration.images import ImageError, read_pixels

_UNKNOWN = -1  # bytes are missing, nobody can say how many
_TAIL = 1024
_BLOCK = 2**20
_IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"
_STRIPS, _TILES = (273, 279), (324, 325)  # TIFF: tags of offsets and of byte counts
_TIFF_INTEGERS = {3: "u2", 4: "u4", 16: "u8"}
_TIFF_BYTES = dict(zip(range(1, 19), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8), strict=True))  # by type


class Decoder(Protocol):
    """Decodes a file (`restoration.datasets.readers`)."""

    def pixels(self, path: Path) -> object:
        """Raises ImageError."""
        ...


def check_whole(path: Path) -> None:
    """Refuse a file of which the end is missing. One whose pixels are all there for all that passes.

    Raises:
        ImageError: the file is cut off (with the number of bytes that are missing, where its headers tell), or gone.
    """
    path = Path(path)
    try:
        with path.open("rb", buffering=0) as file:
            missing = _missing(file)
    except OSError as error:
        raise ImageError(f"{path}: can't be read: {error.strerror or error}") from error
    if not missing:
        return
    # Headers lie now and then: programs pad files, forget the last mark or write wrong counts. Pixels decide.
    try:
        read_pixels(path)
    except ImageError as error:
        what = f"at least {missing} bytes are missing" if missing > 0 else "its end is missing"
        raise ImageError(f"{path}: the file is cut off: {what}; copy it again, or remove it") from error


def undecodable(files: Iterable[tuple[Path, Decoder]]) -> list[ImageError]:
    """Decode every file, several at once, and give the errors of those that can't be, each with the file's name."""

    def trouble(file: tuple[Path, Decoder]) -> ImageError | None:
        path, decoder = file
        try:
            decoder.pixels(path)
        except ImageError as error:
            return error
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [error for error in pool.map(trouble, files) if error is not None]


def _missing(file: BinaryIO) -> int:
    """How many bytes are missing: 0 for a whole file, `_UNKNOWN` where it can't be told how many."""
    size = file.seek(0, os.SEEK_END)
    start = _read(file, 0, 64)
    for magic, look in _KINDS:
        if re.match(magic, start, re.DOTALL):
            try:
                return look(file, size, start)
            except (struct.error, IndexError):  # cut within its headers
                return _UNKNOWN
    return 0


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    return file.read(count)


def _png(file: BinaryIO, size: int, start: bytes) -> int:
    if _read(file, max(0, size - len(_IEND)), len(_IEND)) == _IEND:
        return 0
    position = len(b"\x89PNG\r\n\x1a\n")
    while position < size:  # something was appended, or the end is missing
        length, name = struct.unpack(">I4s", _read(file, position, 8))
        position += 12 + length
        if name == b"IEND":
            break
    else:
        position += len(_IEND)
    return max(0, position - size)


def _jpeg(file: BinaryIO, size: int, start: bytes) -> int:
    position = 2
    while True:  # over the segments before the first scan, which may hold a thumbnail with an end of its own
        mark, kind, length = struct.unpack(">BBH", _read(file, position, 4))
        if mark != 0xFF:
            return _UNKNOWN
        if kind == 0xFF:  # padding
            position += 1
            continue
        position += 2 + length
        if position > size:
            return position - size
        if kind == 0xDA:
            break
    # In a scan 0xFF is followed by 0 or a mark, so that the end can't occur within. Cameras append videos to it.
    return (
        0 if _holds(file, max(position, size - _TAIL), b"\xff\xd9") or _holds(file, position, b"\xff\xd9") else _UNKNOWN
    )


def _holds(file: BinaryIO, offset: int, wanted: bytes) -> bool:
    file.seek(offset)
    last = b""
    while block := file.read(_BLOCK):
        if wanted in last + block:
            return True
        last = block[1 - len(wanted) :]
    return False


def _webp(file: BinaryIO, size: int, start: bytes) -> int:
    return max(0, 8 + struct.unpack_from("<I", start, 4)[0] - size)


def _gif(file: BinaryIO, size: int, start: bytes) -> int:
    end = _read(file, max(0, size - _TAIL), _TAIL).rstrip(b"\0")
    return 0 if end.endswith(b"\0;") else _UNKNOWN


def _bmp(file: BinaryIO, size: int, start: bytes) -> int:
    (named, offset), header = struct.unpack_from("<I4xI", start, 2), struct.unpack_from("<I", start, 14)[0]
    needed = named
    if header >= 40:
        width, height, bits, packing = struct.unpack_from("<ii2xHI", start, 18)
        if packing in (0, 3):  # not compressed
            needed = max(needed, offset + (width * bits + 31) // 32 * 4 * abs(height))
    return max(0, needed - size)


def _netpbm(file: BinaryIO, size: int, start: bytes) -> int:
    start = _read(file, 0, _TAIL)
    plain = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), start)
    header = re.match(
        rb"P([456])\s+(\d+)\s+(\d+)\s" if start[1:2] == b"4" else rb"P([56])\s+(\d+)\s+(\d+)\s+(\d+)\s", plain
    )
    if header is None:
        return _UNKNOWN
    kind, width, height = int(header[1]), int(header[2]), int(header[3])
    row = (width + 7) // 8 if kind == 4 else width * (3 if kind == 6 else 1) * (2 if int(header[4]) > 255 else 1)
    return max(0, header.end() + row * height - size)


def _boxes(file: BinaryIO, size: int, start: bytes) -> int:
    """AVIF and JPEG 2000: the outermost boxes follow each other to the end of the file."""
    position = 0
    while position < size:
        length, name = struct.unpack(">I4s", _read(file, position, 8))
        if length == 1:
            (length,) = struct.unpack(">Q", _read(file, position + 8, 8))
        if length == 0:  # to the end of the file
            return _codestream(file, size, start) if name == b"jp2c" else 0
        if length < 8:
            return 0  # what was appended is no box
        position += length
    return position - size


def _codestream(file: BinaryIO, size: int, start: bytes) -> int:
    return 0 if b"\xff\xd9" in _read(file, max(0, size - _TAIL), _TAIL) else _UNKNOWN


def _tiff(file: BinaryIO, size: int, start: bytes) -> int:
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", start, 2)[0] == 43
    (directory,) = struct.unpack_from(order + "Q", start, 8) if big else struct.unpack_from(order + "I", start, 4)
    entry = 20 if big else 12
    counted = _read(file, directory, 8 if big else 2)
    if len(counted) < (8 if big else 2):
        return max(_UNKNOWN, directory + len(counted) + entry - size)
    (count,) = struct.unpack(order + ("Q" if big else "H"), counted)
    count = min(count, 4096)
    entries = _read(file, directory + len(counted), count * entry)
    if len(entries) < count * entry:
        return count * entry - len(entries)
    needed, found = 0, {}
    for n in range(count):
        tag, kind, many = struct.unpack_from(order + ("HHQ" if big else "HHI"), entries, n * entry)
        length, room = many * _TIFF_BYTES.get(kind, 0), 8 if big else 4
        value = entries[(n + 1) * entry - room : (n + 1) * entry][:length]
        if length > room:
            (offset,) = struct.unpack(order + ("Q" if big else "I"), value)
            needed = max(needed, offset + length)
        if tag in (*_STRIPS, *_TILES) and kind in _TIFF_INTEGERS:
            value = value if length <= room else _read(file, offset, length)
            dtype = np.dtype(order + _TIFF_INTEGERS[kind])
            found[tag] = np.frombuffer(value[: len(value) // dtype.itemsize * dtype.itemsize], dtype).astype(np.int64)
    for offsets, counts in (_STRIPS, _TILES):
        if offsets in found and counts in found and len(found[offsets]) == len(found[counts]) > 0:
            needed = max(needed, int((found[offsets] + found[counts]).max()))
    return max(0, needed - size)


_KINDS: tuple[tuple[bytes, Callable[[BinaryIO, int, bytes], int]], ...] = (
    (rb"\x89PNG\r\n\x1a\n", _png),
    (rb"\xff\xd8\xff", _jpeg),
    (rb"RIFF....WEBP", _webp),
    (rb"GIF8[79]a", _gif),
    (rb"BM", _bmp),
    (rb"P[456]\s", _netpbm),
    (rb"....ftypavi[fs]", _boxes),
    (rb"\0\0\0\x0cjP  \r\n\x87\n", _boxes),
    (rb"\xff\x4f\xff\x51", _codestream),
    (rb"II[*+]\0|MM\0[*+]", _tiff),
)
