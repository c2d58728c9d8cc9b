"""LPIPS and FID beside the other figures of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from restoration.evaluate import Pixels, Row
from restoration.metrics.fid import Fid
from restoration.metrics.lpips import LEAST_SIDE, Lpips


class Published:
    """Measures the pictures that `evaluate_pairs` and `evaluate_folders` show it (their `on_image`).

    Args:
        lpips, fid: folders of the published weights; None leaves a metric out.

    Raises:
        CheckpointError: weights that are absent or of another network.
    """

    def __init__(self, lpips: Path | None, fid: Path | None) -> None:
        self.lpips = Lpips.from_published(lpips) if lpips is not None else None
        self.fid = Fid(fid) if fid is not None else None
        self._distances: dict[str, float] = {}
        self._missing: dict[str, str] = {}

    def see(self, image_id: str, lq: Pixels, restored: Pixels, gt: Pixels) -> None:
        height, width = gt.shape[:2]
        if self.lpips is not None and min(height, width) < LEAST_SIDE:
            self._missing[image_id] = f"LPIPS needs at least {LEAST_SIDE} px a side, got {width}x{height}"
        elif self.lpips is not None:
            a, b = (torch.from_numpy(image)[None].movedim(-1, 1).float() / 255 for image in (restored, gt))
            self._distances[image_id] = float(self.lpips(a, b))
        if self.fid is not None:
            self.fid.add(restored, gt)

    def beside(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with "lpips", NaN of pictures that were too small for it or were never shown."""
        if self.lpips is None:
            return list(rows)
        return [
            Row(
                row.image_id,
                row.values | {"lpips": self._distances.get(row.image_id, math.nan)},
                row.missing | ({"lpips": self._missing[row.image_id]} if row.image_id in self._missing else {}),
            )
            for row in rows
        ]

    def of_all(self) -> str:
        """What is told of the set as a whole."""
        if self.fid is None:
            return ""
        try:
            return f", fid {self.fid.value():.4f}"
        except ValueError as error:
            return f", no {error}"
