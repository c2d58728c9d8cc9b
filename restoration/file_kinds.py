"""What a file is by its first bytes, whatever its name says; for what is no weights file, a sentence for its owner."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Literal

Kind = Literal["safetensors", "zip", "pickle"]
WEIGHTS_SUFFIXES = (".safetensors", ".ckpt", ".pth", ".pt", ".bin", ".pkl")
HEAD_BYTES = 4096

_LFS = re.compile(rb"version https://[^\n]*(?:git-lfs|hawser)[^\n]*\n")
_LFS_SIZE = re.compile(rb"^size (\d+)", re.MULTILINE)
_PAGES = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<script", b"<!--")
_PACKED = {
    b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar",
}  # fmt: skip
_OTHERS = {
    b"GGUF": "a GGUF file", b"\x89HDF": "an HDF5 file, of Keras perhaps", b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"%PDF": "a PDF",
}  # fmt: skip
_WHOLE = "download it again, whole"


def kind_of(head: bytes) -> Kind | None:
    """The format of weights that begins so; None of anything else.

    Args:
        head: the first `HEAD_BYTES` of the file.
    """
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") < 1 << 32:
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head[:1] == b"\x80" and len(head) > 2 and head[1] <= 5:
        return "pickle"
    return None


def not_fetched(head: bytes, size: int) -> str | None:
    """What stands in the place of any file that was not downloaded, and what to do; arguments as `told`."""
    text = _text(head)
    if size == 0:
        return f"is empty (0 bytes): {_WHOLE}"
    if _LFS.match(text):
        stands_for = _LFS_SIZE.search(text)
        bytes_of = f"the file it stands for has {int(stands_for[1]):,} bytes" if stands_for else "not the file itself"
        return f"is a Git LFS pointer of {size} bytes; {bytes_of}: run `git lfs pull` in its folder, or download it"
    if text.lower().startswith(_PAGES):
        return (
            f"is a web page of {size} bytes saved in its place: download from the address of the file itself (where "
            "the site asks for it, logged in)"
        )
    return None


def told(head: bytes, size: int) -> str | None:
    """What such a file is and what to do, as the rest of a sentence about it; None of unknown bytes.

    Args:
        head: its first `HEAD_BYTES`.
        size: bytes of the whole file.
    """
    if (missing := not_fetched(head, size)) is not None:
        return missing
    text = _text(head)
    if text.startswith((b"{", b"[")) and head[8:9] != b"{":
        return f"is JSON text{_message_in(text)}, not weights: {_advice(text)}"
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it and give the file of weights in it"
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return f"is packed by {name}: unpack it and give the file of weights in it"
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            return f"is {name}, not weights: give a .safetensors or a torch file"
    if len(text) > 8 and all(byte >= 32 or byte in b"\r\n\t" for byte in text[:256]):
        return f"is text that begins {_quoted(text)}, not weights: {_WHOLE}"
    return None


def _text(head: bytes) -> bytes:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()


def first(names: Iterable[str], count: int = 3) -> str:
    """The first few names that a file holds, for a message: on one line, and without what steers a terminal."""
    every = [
        name if name.isprintable() and len(name) <= 200 else ascii(name[:200]) for name in islice(names, count + 1)
    ]
    return ", ".join(every[:count]) + (", ..." if len(every) > count else "")


def head_of(file: Path) -> tuple[bytes, int]:
    """The first `HEAD_BYTES` of a file, and its size in bytes. Raises OSError."""
    with file.open("rb") as opened:
        return opened.read(HEAD_BYTES), file.stat().st_size


def _advice(text: bytes) -> str:
    if b'"weight_map"' in text:
        return "it is the index of a network's parts; give its folder, or the file of weights"
    return "an error of the server, perhaps; download it again"


def _message_in(text: bytes) -> str:
    """What a server's short answer says."""
    try:
        value = json.loads(text)
    except ValueError:
        return f" that begins {_quoted(text)}"
    found = [value.get(k) for k in ("error", "message", "detail")] if isinstance(value, dict) else []
    said = next((v for v in found if isinstance(v, str)), None)
    return f" ({said[:100]!r})" if said else f" that begins {_quoted(text)}"


def _quoted(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace").splitlines()[0])
