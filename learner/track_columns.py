"""Reward tracks as a few flat tensors, for a safetensors file: 8 bytes a reward, whatever its value.

Columns (N images, M tracks, V rewards):

    image_ids       uint8 [bytes]   UTF-8 of all ids, one after the other
    image_ends      int64 [N]       where each id ends
    track_counts    int32 [N]       tracks of each image
    steps           int32 [M]       step key of each track, -1 where steps are not told apart
    lengths         int32 [M]       rewards of each track
    values          float64 [V]     rewards, oldest first
    reward_version  uint8 [bytes]   UTF-8; absent if there is none
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Tracks = dict[str, dict[int, "array[float]"]]
"""Rewards by image id and step key, oldest first."""

_DTYPES = {
    "image_ids": torch.uint8,
    "image_ends": torch.int64,
    "track_counts": torch.int32,
    "steps": torch.int32,
    "lengths": torch.int32,
    "values": torch.float64,
}
_VERSION = "reward_version"


def pack(tracks: Tracks, reward_version: str | None) -> dict[str, Tensor]:
    """The columns, images by id; they share no memory with `tracks`."""
    images = sorted(tracks.items())
    ids = [image.encode("utf-8", "surrogatepass") for image, _ in images]
    keys = [key for _, steps in images for key in steps]
    flat = [track for _, steps in images for track in steps.values()]
    values = np.frombuffer(b"".join([track.tobytes() for track in flat]), np.float64)
    columns = {
        "image_ids": _bytes(b"".join(ids)),
        "image_ends": torch.from_numpy(np.cumsum([len(i) for i in ids], dtype=np.int64)),
        "track_counts": torch.tensor([len(steps) for _, steps in images], dtype=torch.int32),
        "steps": torch.tensor(keys, dtype=torch.int32),
        "lengths": torch.tensor([len(track) for track in flat], dtype=torch.int32),
        "values": torch.from_numpy(values.copy()),
    }
    if reward_version is not None:
        columns[_VERSION] = _bytes(reward_version.encode("utf-8", "surrogatepass"))
    return columns


def unpack(columns: Mapping[str, Tensor]) -> tuple[Tracks, str | None]:
    """Tracks and reward version of `columns`.

    Raises:
        ValueError: naming the column that is missing, or not what it should be.
    """
    _check_types(columns)
    ends, counts, steps, lengths = (
        columns[name].numpy().astype(np.int64) for name in ("image_ends", "track_counts", "steps", "lengths")
    )
    values = columns["values"].contiguous().numpy()
    blob = columns["image_ids"].contiguous().numpy().tobytes()
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    if len(counts) != len(ends):
        raise _error("track_counts", f"holds {len(counts)} images, image_ends {len(ends)}")
    if (ends < starts).any() or (int(ends[-1]) if len(ends) else 0) != len(blob):
        raise _error("image_ends", f"doesn't cut the {len(blob)} bytes of image_ids into ids")
    if (counts < 0).any() or counts.sum() != len(steps):
        raise _error("track_counts", f"adds up to {counts.sum()}, there are {len(steps)} tracks")
    if (steps < -1).any():
        raise _error("steps", f"holds {steps.min()}, wanted a step or -1")
    if len(lengths) != len(steps) or (lengths < 1).any() or lengths.sum() != len(values):
        raise _error("lengths", f"must be {len(steps)} numbers above 0 that add up to the {len(values)} values")
    if not np.isfinite(values).all():
        raise _error("values", "holds NaN or infinity")

    tracks: Tracks = {}
    names = [_text(blob[a:b], "image_ids") for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    cut = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    keys, place = steps.tolist(), 0
    for name, count in zip(names, counts.tolist(), strict=True):
        if name in tracks:
            raise _error("image_ids", f"holds {name!r} twice")
        own = tracks[name] = {}
        for m in range(place, place + count):
            own[keys[m]] = array("d", values[cut[m] : cut[m + 1]].tobytes())
        if len(own) != count:
            raise _error("steps", f"has a step of image {name!r} twice")
        place += count
    version = columns.get(_VERSION)
    return tracks, None if version is None else _text(version.contiguous().numpy().tobytes(), _VERSION)


def _check_types(columns: Mapping[str, Tensor]) -> None:
    wanted = _DTYPES | ({_VERSION: torch.uint8} if _VERSION in columns else {})
    if odd := sorted(wanted.keys() ^ columns.keys()):
        raise ValueError(f"reward tracks: columns missing or unknown: {', '.join(odd)}")
    for name, dtype in wanted.items():
        if columns[name].dtype != dtype or columns[name].ndim != 1:
            raise _error(name, f"is {columns[name].dtype} {list(columns[name].shape)}, wanted a vector of {dtype}")


def _error(column: str, what: str) -> ValueError:
    return ValueError(f"reward tracks: column {column} {what}")


def _bytes(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, np.uint8).copy())


def _text(raw: bytes, column: str) -> str:
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise _error(column, f"is not UTF-8 ({error.reason})") from error
