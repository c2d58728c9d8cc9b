"""How the files of a set are read: pictures as they are or in a fixed depth, and scenes of NumPy arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from restoration.image_ends import check_whole
from restoration.images import ImageError, Pixels, image_size, read_pixels

Size = tuple[int, int]


class Reader(Protocol):
    """Reads the files of both sides of a set."""

    def size(self, path: Path) -> Size:
        """(height, width) that `pixels` will have, from the header only. Raises ImageError."""
        ...

    def check(self, path: Path) -> None:
        """Raises ImageError for a file of which the end is missing."""
        ...

    def pixels(self, path: Path) -> Pixels:
        """uint8 or uint16 [H, W, 3] sRGB. Raises ImageError."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Pictures of any kind.

    Attributes:
        bits: None takes them as they are; 8 takes the upper half of 16 bits, as OpenCV does that reads a file of 16
            bits as 8; 16 refuses files of fewer.
    """

    bits: Literal[8, 16] | None = None

    def size(self, path: Path) -> Size:
        return image_size(path)

    def check(self, path: Path) -> None:
        check_whole(path)

    def pixels(self, path: Path) -> Pixels:
        pixels = read_pixels(path)
        if self.bits == 8 and pixels.dtype == np.uint16:
            return (pixels >> 8).astype(np.uint8)
        if self.bits == 16 and pixels.dtype == np.uint8:
            raise ImageError(
                f"{path}: 8 bits a channel in a set of 16; take the files as they were published (a program that "
                "copied them has cut them), or the set's form of 8 bits"
            )
        return pixels


@dataclass(frozen=True)
class SceneArrays:
    """Arrays of a .npy file, uint8 [H, W, 3] BGR, the order of OpenCV that wrote them.

    Attributes:
        size_hw: to which they are resized, bilinear on 8 bits as `cv2.resize` does; None leaves them as they are.
    """

    size_hw: Size | None = None

    def size(self, path: Path) -> Size:
        return self.size_hw or self._open(path).shape[:2]

    def check(self, path: Path) -> None:
        self._open(path)

    def pixels(self, path: Path) -> Pixels:
        try:
            pixels = np.ascontiguousarray(self._open(path)[..., ::-1])
        except OSError as error:
            raise ImageError(f"{path}: can't be read: {error.strerror or error}") from error
        if self.size_hw is None or pixels.shape[:2] == self.size_hw:
            return pixels
        import cv2  # here, because machines that only roll out may lack it

        return np.asarray(cv2.resize(pixels, self.size_hw[::-1], interpolation=cv2.INTER_LINEAR), dtype=np.uint8)

    def _open(self, path: Path) -> np.ndarray:
        """The array, mapped and not read; a file that is cut off can't be mapped."""
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
            what = "holds Python objects, which are not read" if "Python objects" in reason else reason
            raise ImageError(f"{path}: can't be read as an array: {what}; get the file again") from error
        if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
            found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive of arrays"
            raise ImageError(
                f"{path}: {found}, where scenes are uint8 [height, width, 3] in the order BGR; convert it (of values "
                "in [0, 1]: round(255 * x)), or give the folder of the published arrays"
            )
        if not array.size:
            raise ImageError(f"{path}: an array without pixels, {list(array.shape)}; get the file again")
        return array


IMAGES = ImageFiles()
