"""Colour profiles and pictures in other colour spaces, made of published numbers."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np

# Linear RGB to XYZ of D65: from the standards (IEC 61966-2-1, Adobe RGB (1998), SMPTE RP 431-2 with D65).
SRGB = np.array(
    [[0.4123908, 0.3575843, 0.1804808], [0.2126390, 0.7151687, 0.0721923], [0.0193308, 0.1191948, 0.9505322]]
)
ADOBE = np.array(
    [[0.5766690, 0.1855582, 0.1882286], [0.2973450, 0.6273636, 0.0752915], [0.0270314, 0.0706889, 0.9913375]]
)
P3 = np.array([[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0.0, 0.0451134, 1.0439444]])


def linear(encoded):
    """sRGB's curve undone; in [0, 1]."""
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def encoded(light):
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.clip(light, 0, 1) ** (1 / 2.4) - 0.055)


def in_space(srgb, matrix, encode):
    """sRGB of [0, 1] in the space of this matrix and curve, clipped to it."""
    return encode(np.clip(linear(srgb) @ (np.linalg.inv(matrix) @ SRGB).T, 0, 1))


def as_adobe(srgb):
    return in_space(srgb, ADOBE, lambda light: light ** (256 / 563))


def as_p3(srgb):
    return in_space(srgb, P3, encoded)


def as_cmyk(srgb):
    """Ink of a printer whose light is 0.9 (1 - colour) + 0.1 (1 - black), each after sRGB's curve."""
    light = linear(srgb)
    least = np.clip((light.max(-1, keepdims=True) - 0.9) / 0.1, 0, 1)
    most = np.clip(light.min(-1, keepdims=True) / 0.1, 0, 1)
    black = (least + most) / 2
    return 1 - encoded(np.clip(np.concatenate([(light - 0.1 * black) / 0.9, black], -1), 0, 1))


def profile(space, tags, kind=b"mntr", connection=b"XYZ "):
    """A version 4 profile with these tags."""
    text = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2, 28) + b"\0t\0\0"
    tags = {b"desc": text, b"cprt": text, b"wtpt": xyz(0.9642, 1.0, 0.8249), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data
    head = struct.pack(
        ">I4xI4s4s4s12x4s28x3i",
        128 + len(table + body),
        0x04300000,
        kind,
        space,
        connection,
        b"acsp",
        *(fixed(v) for v in (0.9642, 1.0, 0.8249)),
    )
    return head.ljust(128, b"\0") + table + body


def fixed(value):
    return round(value * 65536)


def xyz(*values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *map(fixed, values))


def gamma_curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def table_curve(values):
    return b"curv\0\0\0\0" + struct.pack(
        f">I{len(values)}H", len(values), *np.rint(np.asarray(values) * 65535).astype(int)
    )


def grey_profile(curve):
    return profile(b"GRAY", {b"kTRC": curve})


def lut_profile(space, inks, table, entries=4096):
    """A profile of one table: `inks` is the curve of a channel, `table` [2, ..., 2, 3] XYZ of D50 of its ends."""
    channels = table.ndim - 1
    lut = b"mft2\0\0\0\0" + bytes([channels, 3, 2, 0]) + struct.pack(">9i", *(fixed(v) for v in np.eye(3).ravel()))
    lut += struct.pack(">HH", entries, 2)
    curve = np.rint(inks(np.linspace(0, 1, entries)) * 65535).astype(">u2").tobytes()
    lut += curve * channels + np.rint(table * 32768).astype(">u2").tobytes() + struct.pack(">2H", 0, 65535) * 3
    return profile(space, {b"A2B0": lut}, kind=b"prtr" if channels == 4 else b"mntr")


def d50(matrix):
    """A matrix to XYZ of D65 adapted to D50 (Bradford)."""
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    cones = np.diag((bradford @ [0.9642, 1.0, 0.8249]) / (bradford @ matrix.sum(1)))
    return np.linalg.inv(bradford) @ cones @ bradford @ matrix


def matrix_profile(matrix, curve):
    columns = d50(matrix).T
    tags = {n: xyz(*column) for n, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)}
    return profile(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def cmyk_profile():
    """Of `as_cmyk`: exact between the ends of its table, since light is a sum of the inks'."""
    table = np.zeros((2, 2, 2, 2, 3))
    for c, m, y, k in np.ndindex(2, 2, 2, 2):
        table[c, m, y, k] = d50(SRGB) @ (0.9 * np.array([c, m, y]) + 0.1 * k)
    return lut_profile(b"CMYK", lambda ink: linear(1 - ink), table)


def rgb_table_profile(matrix, decode):
    table = np.zeros((2, 2, 2, 3))
    for r, g, b in np.ndindex(2, 2, 2):
        table[r, g, b] = d50(matrix) @ np.array([r, g, b])
    return lut_profile(b"RGB ", decode, table)


SRGB_CURVE = table_curve(linear(np.linspace(0, 1, 4096)))
ADOBE_PROFILE = matrix_profile(ADOBE, gamma_curve(563 / 256))
P3_PROFILE = matrix_profile(P3, SRGB_CURVE)


def deep_png(path, pixels, **chunks):
    """A 16-bit PNG of uint16 [H, W, C] with further chunks behind the header; `iCCP` is given as the profile."""
    done, encoded_file = cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert done
    write_chunks(path, bytes(encoded_file), **chunks)


def write_chunks(path, png, **chunks):
    if "iCCP" in chunks:
        chunks["iCCP"] = b"p\0\0" + zlib.compress(chunks["iCCP"])
    made = b""
    for name, data in chunks.items():
        body = name.encode() + data
        made += struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(png[:33] + made + png[33:])


def deep_tiff(path, pixels, icc):
    """A 16-bit TIFF of uint16 [H, W, 3] in one strip, with a profile."""
    height, width, _ = pixels.shape
    data = pixels.astype("<u2").tobytes()
    at = 8 + 2 + 11 * 12 + 4
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, at), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, at + 8 + len(icc)), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data)), (284, 3, 1, 1),
        (34675, 7, len(icc), at + 8),
    ]  # fmt: skip
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + table + bytes(4)
    path.write_bytes(head + struct.pack("<4H", 16, 16, 16, 0) + icc + data)
