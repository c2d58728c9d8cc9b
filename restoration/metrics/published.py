"""LPIPS, DISTS and FID beside the other figures of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from restoration.evaluate import Pixels, Row
from restoration.metrics.dists import Dists
from restoration.metrics.fid import Fid
from restoration.metrics.lpips import TRUNKS, Lpips
from restoration.trouble import free_memory, is_memory, reason_of

LESS_MEMORY = "measure smaller pictures, or leave this figure out"

Distance = Callable[[Tensor, Tensor], Tensor]  # of pictures [B, 3, H, W] in [0, 1] -> [B]


class Published:
    """Measures the pictures that `evaluate_pairs` and `evaluate_folders` show it (their `on_image`).

    Args:
        lpips, fid, dists: folders of the published weights; None leaves a metric out.
        nets: of LPIPS, `alex` in the column `lpips` and `vgg` in `lpips_vgg`.
        kinds: of FID, as `Fid` has them.

    Raises:
        CheckpointError: weights that are absent or of another network.
        ValueError: an unknown net or kind.
    """

    def __init__(
        self,
        lpips: Path | None,
        fid: Path | None,
        nets: Sequence[str] = ("alex",),
        kinds: Sequence[str] = ("clean",),
        dists: Path | None = None,
    ) -> None:
        if unknown := [net for net in nets if net not in TRUNKS]:
            raise ValueError(f"LPIPS on {unknown[0]!r} is unknown; choose {' or '.join(TRUNKS)}")
        self.pairwise: dict[str, tuple[Distance, int]] = {}  # and pixels a side that pictures must have
        for net in dict.fromkeys(nets) if lpips is not None else ():
            metric = Lpips.from_published(lpips, net)  # type: ignore[arg-type]
            self.pairwise["lpips" if net == "alex" else f"lpips_{net}"] = (metric, metric.trunk.least_side)
        if dists is not None:
            self.pairwise["dists"] = (Dists.from_published(dists), 1)
        self.fid: list[Fid] = []
        for kind in dict.fromkeys(kinds) if fid is not None else ():
            self.fid.append(Fid(fid, kind, self.fid[0].network if self.fid else None))  # type: ignore[arg-type]
        self._distances: dict[str, dict[str, float]] = {name: {} for name in self.pairwise}
        self._missing: dict[str, dict[str, str]] = {}
        self.left_out: dict[str, str] = {}  # kind of FID -> why a picture has no part in it

    def see(self, image_id: str, lq: Pixels, restored: Pixels, gt: Pixels) -> None:
        height, width = gt.shape[:2]
        pair = None
        for name, (metric, least) in self.pairwise.items():
            if min(height, width) < least:
                why = f"{name} needs at least {least} px a side, got {width}x{height}"
                self._missing.setdefault(image_id, {})[name] = why
                continue
            if pair is None:
                pair = [torch.from_numpy(image)[None].movedim(-1, 1).float() / 255 for image in (restored, gt)]
            try:
                self._distances[name][image_id] = float(metric(*pair))
            except RuntimeError as error:
                if not is_memory(error):
                    raise
                free_memory(error)
                self._missing.setdefault(image_id, {})[name] = reason_of(error, LESS_MEMORY)
        for fid in self.fid:
            try:
                fid.add(restored, gt)
            except ValueError as error:
                self.left_out[fid.name] = f"{image_id}: {error}"

    def beside(self, rows: Sequence[Row]) -> list[Row]:
        """The rows with "lpips" and "dists", NaN of pictures that were too small for it or were never shown."""
        if not self.pairwise:
            return list(rows)
        return [
            Row(
                row.image_id,
                row.values | {name: found.get(row.image_id, math.nan) for name, found in self._distances.items()},
                row.missing | self._missing.get(row.image_id, {}),
            )
            for row in rows
        ]

    def of_all(self) -> str:
        """What is told of the set as a whole."""
        told = ""
        for fid in self.fid:
            try:
                told += f", {fid.told()}"
            except ValueError as error:
                told += f", no {error}"
            if fid.name in self.left_out:
                told += f", without pictures such as {self.left_out[fid.name]}"
        return told
