"""Opening picture files: of any size, the first of several frames, and errors that name the file.

Nothing is decoded here. What a user names is trusted: Pillow's limit against decompression bombs, meant for servers,
does not hold for it, and a picture that takes much of the free memory is told instead.
"""

from __future__ import annotations

import os
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import psutil
from PIL import Image, ImageFile, features

READ_BYTES = 40  # a pixel, at the peak: decoded, as float32 [3, H, W], and a copy while it is made
LARGE = 2**24  # pixels from which memory is looked at
_SUBFILE_TAG = 254
# First bytes (at an offset) of formats that Pillow may lack, and what to do about them.
_FOREIGN = (
    (4, b"ftypavif", "avif", "AVIF"),
    (4, b"ftypavis", "avif", "AVIF"),
    (8, b"WEBP", "webp", "WebP"),
    (4, b"jP  \r\n\x87\n", "jpg_2000", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "jpg_2000", "JPEG 2000"),
    *((4, b"ftyp" + brand, "", "HEIC") for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")),
    (0, b"\xff\x0a", "", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "", "JPEG XL"),
)


class ImageError(ValueError):
    """An image file that can't be read or written; the message names the file and the reason."""


@contextmanager
def opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The picture with its header read, at its first frame; what the block's decoding raises is told by name too.

    Of an animation or a file of several pages the others are left out, with a warning (once a file). The second
    picture of a stereo photograph (MPO) and smaller copies in a TIFF are none.

    Raises:
        ImageError: the file is missing, empty, no picture, damaged, or too large for the memory that is there.
    """
    path = Path(path)
    try:
        with _open(path) as photo:
            if (frames := _frames(photo)) > 1:
                tell_once(f"{path} holds {frames} frames or pages; only the first is read")
            yield photo
    except (OSError, SyntaxError, ValueError, LookupError, EOFError, MemoryError, struct.error) as error:
        raise _named(path, error) from error


@lru_cache(maxsize=4096)
def tell_once(message: str) -> None:
    """Warn, once a process however often a file is read."""
    # Python's own once-per-place registry is emptied whenever anyone changes a filter.
    warnings.warn(message, stacklevel=3)


def load(photo: ImageFile.ImageFile) -> None:
    """Decode it, of whatever size."""
    with any_size if photo.width * photo.height >= LARGE else nullcontext():
        photo.load()


def warn_of_memory(path: Path, photo: ImageFile.ImageFile) -> None:
    """Tell a picture whose pixels alone take more than half of the free memory."""
    pixels = photo.width * photo.height
    if pixels < LARGE:
        return
    needed, free = pixels * READ_BYTES, free_memory()
    if needed > free / 2:
        tell_once(
            f"{path}: {photo.width}x{photo.height} pixels take about {needed / 1e9:.1f} GB to be read, of "
            f"{free / 1e9:.1f} GB that are free; models take several times that unless they see tiles (--tile 512)"
        )


def free_memory() -> int:
    """Bytes that can be had before the machine swaps."""
    return psutil.virtual_memory().available


class _Unlimited:
    """Lifts Pillow's limits while any thread is inside: they are variables of its modules."""

    def __init__(self) -> None:
        self._lock, self._inside, self._limit = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._limit


any_size = _Unlimited()
"""Inside, Pillow opens and decodes pictures of any size, in this thread and, as long as it lasts, in others."""


def _open(path: Path) -> ImageFile.ImageFile:
    if path.is_file() and path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty (0 bytes)")
    with any_size:
        return Image.open(path)  # type: ignore[return-value]


def _frames(photo: ImageFile.ImageFile) -> int:
    if photo.format == "MPO" or not getattr(photo, "is_animated", False):
        return 1
    count: int = photo.n_frames  # type: ignore[attr-defined]
    if photo.format == "TIFF":
        for page in range(1, count):
            photo.seek(page)
            count -= photo.tag_v2.get(_SUBFILE_TAG, 0) & 1  # type: ignore[attr-defined]
        photo.seek(0)
    return count


def _named(path: Path, error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, MemoryError):
        return ImageError(f"{path}: can't be read: there is not enough memory; cut it into parts")
    if isinstance(error, Image.UnidentifiedImageError):
        return ImageError(f"{path}: {_unidentified(path)}")
    if path.is_symlink() and not path.exists():
        return ImageError(f"{path}: can't be read: a link to {os.readlink(path)}, which is not there")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return ImageError(f"{path}: can't be read: {reason}")


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(32)
    for offset, magic, feature, name in _FOREIGN:
        if start[offset:].startswith(magic):
            if not feature:
                return f"{name} files are not read; convert it to PNG or JPEG"
            if not features.check(feature):
                return f"this Pillow is built without {name}; install one that has it, or convert the file to PNG"
    return "no image of a known kind, or its header is damaged"
