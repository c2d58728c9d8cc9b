"""Pictures of other colour spaces become sRGB, as a photo viewer shows them.

A picture's space is what it says: an ICC profile; else the codes of PNG's cICP chunk or AVIF's nclx box; else EXIF's
mark of Adobe RGB; else sRGB. PNG's gAMA and cHRM alone are not followed: programs write them carelessly, and the
readers that data sets are made and published with ignore them. The conversion is relative colorimetric with black
point compensation: colours that sRGB can't show are clipped.

Pictures of 8 bits go through littlecms. Deeper ones with a matrix profile are computed here in float32; with a profile
of tables through a table of 86 x 86 x 86 colours that littlecms fills in 8 bits: exact to half a level of 8 bits, where
colours are clipped to a few.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

Floats: TypeAlias = NDArray[np.float32]
Points = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
_D50 = (0.9642, 1.0, 0.8249)  # the white of ICC's connection space
_D65 = (0.3127, 0.3290)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_REC709: Points = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_ADOBE: Points = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))
_P3: Points = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
_REC2020: Points = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
# A curve is gamma alone, or g, a, b, c, d of: (a x + b)^g from x = d on, below it c x.
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
# Codes of ITU-T H.273. The curves of cameras for video (1, 6, 14, 15) are not those of screens: sRGB's stands for them.
_PRIMARIES = {1: _REC709, 9: _REC2020, 12: _P3}
_CURVES = {**dict.fromkeys((1, 6, 13, 14, 15), _SRGB_CURVE), 4: (2.2,), 5: (2.8,), 8: (1.0,)}
_EXIF_IFD, _INTEROP_IFD, _COLOUR_SPACE_TAG, _INTEROP_INDEX_TAG = 0x8769, 0xA005, 0xA001, 1
_CHANNELS = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
_LARGEST_PROFILE = 2**22
_GRID = 86  # every third of 256 levels
_ROWS_AT_ONCE = 2**20  # pixels of a deep picture converted at a time


class ProfileError(ValueError):
    """A profile that can't be used; the message gives the reason only."""


def profile_of(photo: ImageFile.ImageFile) -> bytes | None:
    """The ICC profile of an opened picture that is not decoded yet, None for sRGB.

    Raises:
        ProfileError: it has one that can't be read, or a space that can't be shown (HDR).
    """
    info = photo.info
    if icc := info.get("icc_profile"):
        return bytes(icc)
    if "icc_profile" in info and info["icc_profile"] is None:
        raise ProfileError("it is incomplete")
    if photo.format == "PNG":
        codes = _codes_of_png(photo)
        return None if codes is None else _of_codes(*codes)
    if photo.format in ("AVIF", "JPEG2000"):
        return _of_box(Path(photo.filename))  # type: ignore[arg-type]
    return adobe_rgb() if _marked_adobe_rgb(photo) else None


def is_srgb(icc: bytes) -> bool:
    """Whether the profile changes no 8-bit colour by more than one level. Cached.

    Raises:
        ProfileError: it is broken.
    """
    return _changes_nothing(icc)


def to_srgb(colours: Image.Image, icc: bytes) -> Image.Image:
    """An 8-bit picture (L, RGB, CMYK) of this profile as RGB.

    Raises:
        ProfileError: the profile is broken or for other channels.
    """
    wanted = _channels(icc)
    if colours.mode == "L" and wanted == "RGB":
        colours = colours.convert("RGB")
    if colours.mode != wanted:
        raise ProfileError(f"it is for {wanted} pictures and this one is {colours.mode}")
    try:
        converted = ImageCms.applyTransform(colours, _transform(icc, wanted))
    except (ImageCms.PyCMSError, ValueError, OSError) as error:
        raise ProfileError(f"littlecms refuses it: {error}") from error
    assert converted is not None
    return converted


def deep_to_srgb(pixels: NDArray[np.uint16], icc: bytes) -> NDArray[np.uint16]:
    """uint16 [H, W, 3] (grey is repeated) of this profile in sRGB.

    Raises:
        ProfileError: the profile is broken or for other channels.
    """
    kind = _channels(icc)
    if kind == "CMYK" or kind == "L" and (pixels != pixels[..., :1]).any():
        raise ProfileError(f"it is for {kind} pictures and this one is RGB")
    convert = _matrix_conversion(icc) or _table_conversion(icc)
    result = np.empty_like(pixels)
    rows = max(1, _ROWS_AT_ONCE // pixels.shape[1])
    for y in range(0, len(pixels), rows):
        result[y : y + rows] = np.rint(np.clip(convert(pixels[y : y + rows]), 0, 1) * 65535)
    return result


def matrix_profile(primaries: Points, white: tuple[float, float], curve: tuple[float, ...]) -> bytes:
    """An ICC profile of these chromaticities (x, y). `curve`: gamma, or (g, a, b, c, d), see `_SRGB_CURVE`."""

    def fixed(*numbers: float) -> bytes:
        return struct.pack(f">{len(numbers)}i", *(round(n * 65536) for n in numbers))

    para = b"para\0\0\0\0" + struct.pack(">HH", 0 if len(curve) == 1 else 3, 0) + fixed(*curve)
    columns = _to_d50(primaries, white).T
    tags = {
        b"desc": b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2, 28) + b"\0p\0\0",
        b"cprt": b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2, 28) + b"\0-\0\0",
        b"wtpt": b"XYZ \0\0\0\0" + fixed(*_D50),
        **{name: b"XYZ \0\0\0\0" + fixed(*xyz) for name, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), para),
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"", 0x04300000, b"mntr", b"RGB ", b"XYZ ") + struct.pack(">6H", *[0] * 6)
    header += b"acsp" + bytes(28) + fixed(*_D50)
    return header.ljust(128, b"\0") + table + body


@lru_cache(maxsize=1)
def adobe_rgb() -> bytes:
    """A profile of Adobe RGB (1998)."""
    return matrix_profile(_ADOBE, _D65, (563 / 256,))


@lru_cache(maxsize=64)
def _of_codes(primaries: int, transfer: int) -> bytes | None:
    if primaries == 2 or transfer == 2:  # "unspecified"
        return None
    if transfer not in _CURVES or primaries not in _PRIMARIES:
        raise ProfileError(f"colours of the codes {primaries}/{transfer} are not known here; 16 and 18 behind are HDR")
    return matrix_profile(_PRIMARIES[primaries], _D65, _CURVES[transfer])


def _codes_of_png(photo: ImageFile.ImageFile) -> tuple[int, int] | None:
    """Primaries and transfer of the cICP chunk, which Pillow leaves out."""
    assert photo.fp is not None
    position, place = photo.fp.tell(), len(b"\x89PNG\r\n\x1a\n")
    try:
        while True:
            photo.fp.seek(place)
            length, name = struct.unpack(">I4s", photo.fp.read(8))
            if name == b"cICP":
                return tuple(photo.fp.read(2))  # type: ignore[return-value]
            if name in (b"PLTE", b"IDAT", b"IEND"):
                return None
            place += 12 + length
    except struct.error:
        return None  # decoding will tell that it is cut off
    finally:
        photo.fp.seek(position)


def _of_box(path: Path) -> bytes | None:
    """The colr box of AVIF (codes; Pillow knows its profiles) and JPEG 2000 (a profile)."""
    with path.open("rb") as file:
        start = file.read(_LARGEST_PROFILE)
    at = start.find(b"colr")
    if at < 4:
        return None
    content = start[at + 4 : at - 4 + int.from_bytes(start[at - 4 : at], "big")]
    if content[:4] == b"nclx" and len(content) >= 8:
        return _of_codes(*struct.unpack(">HH", content[4:8]))
    return content[3:] if content[:1] == b"\x02" else None


def _marked_adobe_rgb(photo: Image.Image) -> bool:
    """Cameras write Adobe RGB as "uncalibrated" with the interoperability index R03."""
    if "exif" not in photo.info:
        return False
    exif = photo.getexif()
    if exif.get_ifd(_EXIF_IFD).get(_COLOUR_SPACE_TAG) != 0xFFFF:
        return False
    index = exif.get_ifd(_INTEROP_IFD).get(_INTEROP_INDEX_TAG, "")
    return str(index).startswith("R03")


def _channels(icc: bytes) -> str:
    """Mode of the pictures that the profile is for."""
    if len(icc) < 132 or icc[36:40] != b"acsp":
        raise ProfileError("it is no ICC profile")
    if icc[16:20] not in _CHANNELS:
        raise ProfileError(f"its colour space {icc[16:20]!r} is not known")
    return _CHANNELS[icc[16:20]]


@lru_cache(maxsize=32)
def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.HIGHRESPRECALC
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    srgb = ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(profile, srgb, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags)


@lru_cache(maxsize=256)
def _changes_nothing(icc: bytes) -> bool:
    mode = _channels(icc)
    if mode == "CMYK":
        return False
    ramp = np.arange(256, dtype=np.uint8)
    if mode == "L":
        probes, same = Image.fromarray(ramp[None]), np.repeat(ramp[None, :, None], 3, axis=-1)
    else:
        levels = np.linspace(0, 255, 18).astype(np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
        same = np.concatenate([grid, np.repeat(ramp[:, None], 3, axis=1)])[None]
        probes = Image.fromarray(same)
    seen = np.asarray(to_srgb(probes, icc))
    return bool(np.abs(seen.astype(int) - same).max() <= 1)


def _matrix_conversion(icc: bytes) -> Callable[[NDArray[np.uint16]], Floats] | None:
    """Of a matrix (or grey) profile: uint16 [..., 3] to float32 of sRGB, not clipped. None: it has tables."""
    tags = _tags(icc)
    grey = _channels(icc) == "L"
    needed = (b"kTRC",) if grey else (b"rTRC", b"gTRC", b"bTRC", b"rXYZ", b"gXYZ", b"bXYZ")
    if any(name in tags for name in (b"A2B0", b"A2B1", b"D2B0", b"D2B1")) or any(name not in tags for name in needed):
        return None
    try:
        curves = [_curve(tags[b"kTRC"])] * 3 if grey else [_curve(tags[name]) for name in needed[:3]]
        columns = [] if grey else [struct.unpack_from(">3i", tags[name], 8) for name in needed[3:]]
    except (struct.error, FloatingPointError, ZeroDivisionError) as error:
        raise ProfileError(f"a tag of it is damaged: {error}") from error
    to_xyz = np.diag(_D50) if grey else np.array(columns).T / 65536
    matrix = (np.linalg.inv(_to_d50(_REC709, _D65)) @ to_xyz).T.astype(np.float32)
    black = float(to_xyz[1] @ [curve[0] for curve in curves])  # what the darkest colour reflects, made 0

    def convert(pixels: NDArray[np.uint16]) -> Floats:
        linear = np.stack([curve[pixels[..., c]] for c, curve in enumerate(curves)], -1)
        return _encode(((linear if grey else linear @ matrix) - np.float32(black)) / np.float32(1 - black))

    return convert


def _table_conversion(icc: bytes) -> Callable[[NDArray[np.uint16]], Floats]:
    from scipy.ndimage import map_coordinates  # here: few pictures need it, and every process would wait for it

    nodes = np.linspace(0, 255, _GRID).astype(np.uint8)
    grid = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(1, -1, 3)
    table = np.asarray(to_srgb(Image.fromarray(grid), icc), np.float32).reshape(_GRID, _GRID, _GRID, 3) / 255

    def convert(pixels: NDArray[np.uint16]) -> Floats:
        where = np.moveaxis(pixels.astype(np.float32) * np.float32((_GRID - 1) / 65535), -1, 0)
        return np.stack([map_coordinates(table[..., c], where, order=1) for c in range(3)], -1)

    return convert


def _tags(icc: bytes) -> dict[bytes, bytes]:
    try:
        (count,) = struct.unpack_from(">I", icc, 128)
        entries = [struct.unpack_from(">4sII", icc, 132 + 12 * n) for n in range(min(count, 200))]
    except struct.error as error:
        raise ProfileError("it is cut off") from error
    return {name: icc[offset : offset + size] for name, offset, size in entries}


def _curve(tag: bytes) -> Floats:
    """A tone curve at its 65536 places."""
    x = np.arange(65536) / 65535
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        points = struct.unpack_from(f">{count}H", tag, 12)
        if count > 1:
            return np.interp(x, np.linspace(0, 1, count), np.array(points) / 65535).astype(np.float32)
        return (x ** (points[0] / 256 if points else 1.0)).astype(np.float32)
    if tag[:4] != b"para":
        raise ProfileError(f"its tone curve is of the unknown kind {tag[:4]!r}")
    (kind,) = struct.unpack_from(">H", tag, 8)
    if kind > 4:
        raise ProfileError(f"its tone curve is of the unknown kind {kind}")
    g, a, b, c, d, e, f = np.pad(np.array(struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", tag, 12)) / 65536, (0, 6))[
        :7
    ]
    if kind == 0:
        a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 0.0, 0.0
    elif kind in (1, 2):
        a, b, c, d, e, f = a, b, 0.0, -b / a, c, c
    curved = np.clip(a * x + b, 0, None) ** g + e
    return np.clip(np.where(x >= d, curved, c * x + f), 0, 1).astype(np.float32)


def _encode(linear: Floats) -> Floats:
    """sRGB's curve."""
    linear = np.clip(linear, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)


def _to_d50(primaries: Points, white: tuple[float, float]) -> NDArray[np.float64]:
    """The matrix from linear RGB to ICC's connection space (XYZ of D50, adapted as Bradford)."""
    xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    of_white = np.array([white[0] / white[1], 1.0, (1 - white[0] - white[1]) / white[1]])
    cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ of_white))
    return np.linalg.inv(_BRADFORD) @ cones @ _BRADFORD @ (xyz * np.linalg.solve(xyz, of_white))
