"""Image files in and out, 8-bit conversion, padding to a multiple and cropping back.

A file of any common kind becomes sRGB: grey is repeated, palettes are looked up, EXIF orientation is applied, other
colour spaces are converted (`colour_profiles`), 16-bit files keep their depth. **Alpha is composited on black and
dropped**: an opaque image is unchanged, and colour hidden under transparent pixels, which no viewer shows, can't leak
into a comparison. Only `read_with_alpha`, for results that shall have the alpha again, keeps the two apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin
from torch import Tensor

from restoration.colour_profiles import ProfileError, deep_to_srgb, is_srgb, profile_of, to_srgb
from restoration.image_opening import ImageError as ImageError
from restoration.image_opening import load, opened, tell_once, warn_of_memory
from restoration.whole_files import written_whole

Pixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
_ORIENTATION_TAG, _BITS_PER_SAMPLE_TAG = 0x0112, 258
_COLOURS = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}  # without alpha; of other modes RGB
_SRGB_CHUNK = b"\0\0\0\x01sRGB\0\xae\xce\x1c\xe9"  # a chunk of PNG with its checksum


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as `read_image` would give them, from the file's header only.

    Raises:
        ImageError: the file is missing, empty or no image.
    """
    with opened(path) as photo:
        width, height = photo.size
        turned = _orientation(photo) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


def read_pixels(path: Path) -> Pixels:
    """The image as uint8 or, from a 16-bit file, uint16 [H, W, 3] sRGB.

    A colour profile that can't be used is told with a warning, and the colours are taken as sRGB.

    Raises:
        ImageError: the file is missing, empty, truncated, no image, or of an unsupported kind (float pixels).
    """
    return cast(Pixels, np.ascontiguousarray(_without_alpha(_read(path))))


def read_image(path: Path) -> Tensor:
    """The image as float32 [3, H, W] in [0, 1].

    Raises:
        ImageError: as `read_pixels`.
    """
    return to_float(read_pixels(path))


def read_with_alpha(path: Path) -> tuple[Tensor, Tensor | None]:
    """Colours in sRGB, not multiplied by alpha, float32 [3, H, W], and alpha, float32 [1, H, W]; both in [0, 1].

    Alpha is None where the file has none or is opaque.

    Raises:
        ImageError: as `read_pixels`.
    """
    pixels = to_float(_read(path))
    colours, alpha = pixels[:3], pixels[3:]
    return colours, None if (alpha == 1).all() else alpha


def images_within(pixels: int, height: int, width: int) -> int:
    """How many images of this size have at most `pixels` together; at least 1."""
    return max(1, pixels // (height * width))


def to_float(pixels: Pixels) -> Tensor:
    """uint8 or uint16 [..., H, W, C] to float32 [..., C, H, W] in [0, 1]."""
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected uint8 or uint16 pixels, got {pixels.dtype}")
    scaled = pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(scaled, -1, -3)))


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """float [..., C, H, W] to uint8 [..., H, W, C], clamped to [0, 1] and rounded to the nearest level.

    Raises:
        ValueError: a value is not finite.
    """
    return _levels(images, 255).to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()


def to_uint16(images: Tensor) -> NDArray[np.uint16]:
    """As `to_uint8`, in 65536 levels."""
    return _levels(images, 65535).movedim(-3, -1).contiguous().cpu().numpy().astype(np.uint16)


def write_image(path: Path, image: Tensor | NDArray[np.uint8], bits: int = 8) -> None:
    """Write a PNG that says it is sRGB; a reader never sees half a file.

    Args:
        image: float [C, H, W] in [0, 1], or uint8 [H, W, C]; C is 3 or, with alpha, 4.
        bits: 8 or 16 a channel; 16 needs a float image.

    Raises:
        ImageError: the name doesn't end in .png, or the file can't be written (no space or
            permission, too long a name).
        ValueError: other bits; a value is not finite.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ImageError(f"{path}: results are written lossless; give a name that ends in .png")
    if bits not in (8, 16) or bits == 16 and not isinstance(image, Tensor):
        raise ValueError(f"bits={bits}: choose 8 or 16, which needs a float image")
    pixels = image if not isinstance(image, Tensor) else to_uint8(image) if bits == 8 else to_uint16(image)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as temporary:
            if pixels.dtype == np.uint8:
                tagged = PngImagePlugin.PngInfo()
                tagged.add(b"sRGB", b"\0")
                Image.fromarray(pixels).save(temporary, format="PNG", compress_level=4, pnginfo=tagged)
            else:
                temporary.write_bytes(_encode_deep(pixels))
    except OSError as error:
        raise ImageError(f"{path}: can't be written: {error.strerror or error}") from error


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Reflect [..., H, W] at the right and bottom edge until both sides are multiples; any size, even 1 x 1.

    `images` itself comes back when nothing is missing. `crop_back` undoes it.
    """
    if multiple < 1:
        raise ValueError(f"multiple={multiple}: at least 1")
    for axis in (-2, -1):
        length = images.shape[axis]
        missing = -length % multiple
        if missing:
            # torch's reflect mode refuses a pad of the image's size or more, so bounce to and fro by index.
            period = max(2 * (length - 1), 1)
            position = torch.arange(length + missing, device=images.device) % period
            images = images.index_select(images.ndim + axis, torch.minimum(position, period - position) % length)
    return images


def crop_back(images: Tensor, height: int, width: int) -> Tensor:
    """The part of padded [..., H, W] that the original of `height` x `width` filled."""
    return images[..., :height, :width]


def _read(path: Path) -> Pixels:
    """uint8 or uint16 [H, W, 3 or 4], the right way up."""
    path = Path(path)
    with opened(path) as photo:
        deep, orientation = _is_deep(photo), _orientation(photo)
        warn_of_memory(path, photo)
        try:
            icc = profile_of(photo)
            icc = None if icc is None or is_srgb(icc) else icc
            pixels = _in_srgb(path, photo, deep, icc)
        except ProfileError as error:
            tell_once(f"{path}: its colour profile can't be used ({error}); its colours are taken as sRGB")
            pixels = _in_srgb(path, photo, deep, None)
    return _oriented(pixels, orientation)


def _in_srgb(path: Path, photo: ImageFile.ImageFile, deep: bool, icc: bytes | None) -> Pixels:
    """uint8 or uint16 [H, W, 3 or 4] of a picture whose colours are those of the profile `icc` (None: sRGB)."""
    load(photo)  # fails on a truncated file, which OpenCV would fill with grey
    # Pillow cuts 16-bit colour to 8 bits; OpenCV keeps it.
    pixels = _decode_deep(path) if deep else _deep_grey(photo) if photo.mode.startswith("I") else None
    if pixels is None:
        return _shallow(photo, icc)
    if icc is not None:
        pixels[..., :3] = deep_to_srgb(pixels[..., :3], icc)
    return pixels


def _orientation(photo: ImageFile.ImageFile) -> int:
    """EXIF orientation, 1 to 8, without decoding pixels (`getexif` would decode a whole PNG to look behind them)."""
    if photo.format == "PNG" and not {"exif", "Raw profile type exif"} & photo.info.keys():
        return 1
    return int(photo.getexif().get(_ORIENTATION_TAG, 1))


def _is_deep(photo: ImageFile.ImageFile) -> bool:
    """Whether a colour PNG or TIFF has 16 bits a channel, which Pillow's mode doesn't tell."""
    if photo.mode not in ("RGB", "RGBA", "LA"):
        return False
    if photo.format == "PNG":
        assert photo.fp is not None
        position = photo.fp.tell()
        photo.fp.seek(24)  # bit depth in IHDR
        depth = photo.fp.read(1)
        photo.fp.seek(position)
        return depth == b"\x10"
    tags = getattr(photo, "tag_v2", {})
    return photo.format == "TIFF" and max(tags.get(_BITS_PER_SAMPLE_TAG, (8,))) == 16


def _decode_deep(path: Path) -> NDArray[np.uint16]:
    import cv2  # here, because machines that only roll out may lack it

    try:
        decoded = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{path}: can't be read: {error}") from error
    if decoded is None or decoded.dtype != np.uint16:
        raise ImageError(f"{path}: can't be read: 16-bit pixels could not be decoded")
    if decoded.ndim == 2:
        return np.repeat(decoded[..., None], 3, axis=-1)
    return np.asarray(decoded[..., [2, 1, 0, 3][: decoded.shape[-1]]])  # BGR(A) to RGB(A)


def _encode_deep(pixels: NDArray[Any]) -> bytes:
    """A 16-bit PNG of uint16 [H, W, 3 or 4]; Pillow writes none in colour."""
    import cv2

    done, file = cv2.imencode(".png", np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[-1]]]))
    if not done:
        raise OSError("16-bit pixels could not be encoded")
    encoded = bytes(file)
    header = 33  # of the signature and IHDR
    return encoded[:header] + _SRGB_CHUNK + encoded[header:]


def _levels(images: Tensor, top: int) -> Tensor:
    """float32 like `images`, whole numbers from 0 to `top`. Raises ValueError on a value that is not finite."""
    images = images.detach().float()
    if not all(bound.isfinite() for bound in torch.aminmax(images)):
        raise ValueError("the image holds values that are not finite and can't become pixels")
    return images.clamp(0, 1).mul_(top).round_()


def _deep_grey(photo: Image.Image) -> NDArray[np.uint16]:
    """uint16 [H, W, 3] of 16-bit grey; mode "I" is its form in 32 bits."""
    grey = np.asarray(photo)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("32-bit integer pixels are not supported; convert the file to 8 or 16 bits")
    return np.repeat(grey.astype(np.uint16)[..., None], 3, axis=-1)


def _shallow(photo: Image.Image, icc: bytes | None) -> NDArray[np.uint8]:
    """uint8 [H, W, 3 or 4] in sRGB."""
    if photo.mode == "F":
        raise ValueError("float pixels are not supported; convert the file to 8 or 16 bits")
    transparent = photo.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in photo.info
    if icc is None or photo.mode == "LAB":  # which says all by itself
        return np.asarray(photo.convert("RGBA" if transparent else "RGB"))
    if photo.mode in ("La", "RGBa"):  # multiplied by alpha
        photo = photo.convert(photo.mode[:-1] + "A")
    colours = to_srgb(photo.convert(_COLOURS.get(photo.mode, "RGB")), icc)
    if transparent:
        colours.putalpha(photo.convert("RGBA").getchannel("A"))
    return np.asarray(colours)


def _without_alpha(pixels: Pixels) -> Pixels:
    if pixels.shape[-1] == 3:
        return pixels
    top = np.iinfo(pixels.dtype).max
    product = pixels[..., :3].astype(np.uint64) * pixels[..., 3:].astype(np.uint64)
    return cast(Pixels, ((product + top // 2) // top).astype(pixels.dtype))


def _oriented(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the eight EXIF orientations: a transposition for 5 to 8, then mirrors."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
