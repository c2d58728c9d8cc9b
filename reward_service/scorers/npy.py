"""Arrays as the bytes of .npy files, without pickle, and never larger than what was announced."""

from __future__ import annotations

import io
import math

import numpy as np

HEADER_BYTES = 4096
"""More than any header of an array without fields; it is read as a literal, so its size is bounded."""


class NotNpy(ValueError):
    """Bytes that are no .npy file, or another array than the one expected."""


def header_of(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """What stands before the bytes of such an array."""
    out = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, described)
    return out.getvalue()


def read_npy(content: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The array of that type and shape in `content`, which holds nothing else; a view of it.

    Raises:
        NotNpy: anything else, by what the header says; nothing is made of it.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise NotNpy(f"npy of version {version}, where 1.0 or 2.0 was expected")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        found, fortran, of = read(stream, max_header_size=HEADER_BYTES)
    except NotNpy:
        raise
    except Exception as error:  # the header's parser raises what the bytes make it raise
        raise NotNpy(f"no npy: it begins with {content[:16]!r} ({str(error).splitlines()[0][:200]})") from error
    if of != dtype or found != shape:
        raise NotNpy(f"npy of {of} {list(found)}, where {dtype} {list(shape)} was expected")
    rest = len(content) - stream.tell()
    if rest != (wanted := math.prod(shape) * dtype.itemsize):
        raise NotNpy(f"npy with {rest} bytes behind its header, where {dtype} {list(shape)} has {wanted}")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
