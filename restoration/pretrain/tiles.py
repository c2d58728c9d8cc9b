"""The held-out tiles that training from scratch is watched by: those of the demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from restoration.datasets.paired import PairedFolder, discover
from restoration.demo_data import make_demo
from restoration.metrics import DEFAULT_PROTOCOL, protocol
from restoration.pretrain.pairs import PairRecipe

Tiles = Mapping[str, PairedFolder]
_BATCH = 8


def heldout_tiles(photos: Path, pairs: PairRecipe, count: int, folder: Path) -> Tiles:
    """Degraded and clean tiles of 128 px of `photos`/heldout by their degradation, as `make_demo` cuts them.

    Args:
        folder: where they are written, or lie already.

    Raises:
        FileNotFoundError, DataError, ImageError: as `make_demo`.
    """
    made = make_demo(photos, folder, pairs.kinds, train_count=1, test_count=count, severity=pairs.severity)
    return {kind: discover(path, "test") for kind, path in made.items()}


def judge(restore: Callable[[Tensor], Tensor], tiles: Tiles, device: torch.device) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of each degradation, `<kind>_psnr` and so on; `restore` is given [B, 3, H, W] there."""
    found: dict[str, float] = {}
    for kind, folder in tiles.items():
        found |= {f"{kind}_{k}": v for k, v in _means(restore, folder, device).items()}
        found[f"{kind}_input_psnr"] = _means(lambda lq: lq, folder, device)["psnr"]
    return found


def judge_autoencoder(vae: AutoencoderKL, tiles: Tiles, device: torch.device) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of the clean tiles, encoded and decoded; all degradations have the same."""

    def through(images: Tensor) -> Tensor:
        return vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample / 2 + 0.5

    return _means(through, next(iter(tiles.values())), device, of_clean=True)


def _means(
    restore: Callable[[Tensor], Tensor], folder: PairedFolder, device: torch.device, of_clean: bool = False
) -> dict[str, float]:
    measure, sums = protocol(DEFAULT_PROTOCOL), {"psnr": 0.0, "ssim": 0.0}
    ids = [pair.image_id for pair in folder.pairs]
    for i in range(0, len(ids), _BATCH):
        lq, gt = (torch.stack(part) for part in zip(*map(folder.load, ids[i : i + _BATCH]), strict=True))
        restored = restore((gt if of_clean else lq).to(device)).float().clamp(0, 1).cpu()
        sums["psnr"] += float(measure.psnr(restored, gt).sum())
        sums["ssim"] += float(measure.ssim(restored, gt).sum())
    return {name: value / len(ids) for name, value in sums.items()}
