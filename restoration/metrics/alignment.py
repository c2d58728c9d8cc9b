"""A result laid over its original before they are compared, as RealBlur's evaluation does it.

Originals of a second camera are not quite in register. The result is scaled in brightness and warped by the homography
that ECC (Evangelidis & Psarakis 2008) finds; where nothing of it comes to lie is left out of every figure.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ITERATIONS, SMOOTHED = 100, 5  # of ECC, and the side of the Gaussian it smooths by
_REMEMBERED = 512  # homographies: PSNR and SSIM of a picture need the same one
Picture = NDArray[np.float32]


@dataclass(frozen=True)
class Aligned:
    """Both pictures, float32 [H, W, 3], 0 where `mask` [H, W] is 0; `failure` says why it is the result as it was."""

    result: Picture
    original: Picture
    mask: NDArray[np.float32]
    failure: str | None = None


def align(result: Picture, original: Picture) -> Aligned:
    """`result` in the place of `original`, both float32 [H, W, 3] in [0, 1].

    Where ECC finds no homography the result comes back as it was, with the reason.
    """
    import cv2  # here, because machines that only roll out may lack it

    key = _digest(result, original)
    found = _known.get(key)
    if found is None:
        found = _found(result, original)
        _known.put(key, found)
    whole = np.ones(result.shape[:2], np.float32)
    if isinstance(found, str):
        return Aligned(result, original, whole, found)
    homography, scale = found
    size = (result.shape[1], result.shape[0])
    moved = cv2.warpPerspective(
        (result * scale).astype(np.float32),
        *(homography, size),
        flags=cv2.INTER_CUBIC + cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )
    nearest = cv2.INTER_NEAREST + cv2.WARP_INVERSE_MAP
    mask = np.asarray(cv2.warpPerspective(whole, homography, size, flags=nearest), dtype=np.float32)
    return Aligned(moved * mask[..., None], original * mask[..., None], mask)


def _found(result: Picture, original: Picture) -> tuple[NDArray[np.float32], np.float32] | str:
    """The homography and the factor of brightness, or why there are none."""
    import cv2

    power = float((result.astype(np.float64) ** 2).sum())
    scale = float((result.astype(np.float64) * original).sum()) / power if power else 0.0
    if not scale:
        return "nothing to align: one of the pictures is black"
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, 0)
    greys = [cv2.cvtColor(p.astype(np.float32), cv2.COLOR_RGB2GRAY) for p in (original, result * np.float32(scale))]
    try:
        _, found = cv2.findTransformECC(  # type: ignore[call-overload]  # its stubs want a mask beside the last one
            *greys, np.eye(3, dtype=np.float32), cv2.MOTION_HOMOGRAPHY, criteria, None, SMOOTHED
        )
    except cv2.error as error:
        return f"ECC finds no homography: {str(error).strip().splitlines()[0]}"
    homography = np.asarray(found, dtype=np.float32)
    if not np.isfinite(homography).all():
        return "ECC finds no homography: it diverges"
    return homography, np.float32(scale)


class _Known:
    """What was found last, by digest of both pictures; safe under threads."""

    def __init__(self) -> None:
        self._held: OrderedDict[bytes, tuple[NDArray[np.float32], np.float32] | str] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> tuple[NDArray[np.float32], np.float32] | str | None:
        with self._lock:
            return self._held.get(key)

    def put(self, key: bytes, found: tuple[NDArray[np.float32], np.float32] | str) -> None:
        with self._lock:
            self._held[key] = found
            while len(self._held) > _REMEMBERED:
                self._held.popitem(last=False)


_known = _Known()


def _digest(*pictures: Picture) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        digest.update(repr(picture.shape).encode())
        digest.update(np.ascontiguousarray(picture).data)
    return digest.digest()
