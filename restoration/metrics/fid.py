"""FID (Heusel et al. 2017, arXiv 1706.08500) with the published Inception weights, which users download.

The network is TensorFlow's Inception of 2015 as PyTorch has it. Compare only figures of the same kind and number of
pictures: of fewer than its 2048 features FID is biased, and the covariance has no full rank.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.models import inception_v3

from restoration.checkpoints import CheckpointError, load_strict, read_state
from restoration.metrics.perceptual import frechet_distance

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
SIDE, FEATURES = 299, 2048
BATCH = 8  # tiles that go through the network together


class Fid:
    """Gathers features of restored pictures and of originals.

    Attributes:
        name: `fid` where pictures are resized as clean-fid does (bicubic, with antialiasing), `fid_legacy` as
            pytorch-fid does (bilinear, without), `fid_patchN` of tiles of N pixels, each resized as the former.
    """

    def __init__(self, folder: Path, kind: str = "clean", network: nn.Module | None = None) -> None:
        """Of the file `WEIGHTS` in `folder`.

        Args:
            kind: clean, legacy, or patchN.
            network: of another `Fid`, which is not read again then.

        Raises:
            ValueError: another kind.
            CheckpointError: the file is absent or another network's.
        """
        self.name, self.patch = "fid" if kind == "clean" else f"fid_{kind}", _patch(kind)
        self.resize = resized_legacy if kind == "legacy" else resized
        file = folder / WEIGHTS
        if network is None and not file.is_file():
            raise CheckpointError(f"{file} is absent: FID needs {WEIGHTS}, as pytorch-fid publishes it")
        self.network = network or inception()
        if network is None:
            load_strict(self.network, read_state(file), file)
        self._features: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])

    @torch.no_grad()
    def add(self, restored: NDArray[np.uint8], gt: NDArray[np.uint8]) -> None:
        """uint8 [H, W, 3] each.

        Raises:
            ValueError: no tile of N pixels fits.
        """
        sides = [_tiles(image, self.patch) for image in (restored, gt)]
        if not sides[1]:
            raise ValueError(f"{self.name}: no tile of {self.patch} px fits into {gt.shape[1]}x{gt.shape[0]}")
        for held, tiles in zip(self._features, sides, strict=True):
            for start in range(0, len(tiles), BATCH):
                features = self.network(torch.stack([self.resize(t) for t in tiles[start : start + BATCH]]) * 2 - 1)
                held.extend(features.double().numpy())

    @property
    def count(self) -> int:
        """Pictures, or tiles, on each side."""
        return len(self._features[1])

    def value(self) -> float:
        """Raises ValueError for fewer than two pictures."""
        if self.count < 2:
            raise ValueError(f"{self.name}: a covariance takes at least two pictures")
        return frechet_distance(*(np.stack(side) for side in self._features))

    def told(self) -> str:
        """The figure with its number of pictures; of few the warning that belongs to it."""
        few = f", below the {FEATURES} features: compare at equal n only" if self.count <= FEATURES else ""
        return f"{self.name} {self.value():.4f} (n={self.count}{few})"


def _patch(kind: str) -> int:
    """Side of the tiles, 0 of whole pictures."""
    found = re.fullmatch(r"clean|legacy|patch([1-9]\d*)", kind)
    if found is None:
        raise ValueError(f"FID of the kind {kind!r} is unknown; choose clean, legacy or patchN, such as patch256")
    return int(found[1] or 0)


def _tiles(image: NDArray[np.uint8], side: int) -> list[NDArray[np.uint8]]:
    """The picture, or its tiles from the upper left corner on; what is left at the other edges is left out."""
    if not side:
        return [image]
    height, width = image.shape[:2]
    places = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    return [image[y : y + side, x : x + side] for y, x in places]


def resized_legacy(image: NDArray[np.uint8]) -> Tensor:
    """float32 [3, 299, 299] in [0, 1], as pytorch-fid resizes."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).movedim(-1, 0)[None].float() / 255
    return F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]


def resized(image: NDArray[np.uint8]) -> Tensor:
    """float32 [3, 299, 299] in [0, 1]."""
    planes = [Image.fromarray(image[..., c].astype(np.float32), "F") for c in range(3)]
    small = np.stack([np.asarray(p.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for p in planes])
    return torch.from_numpy(small.clip(0, 255)) / 255


def inception() -> nn.Module:
    """Without weights; [B,3,299,299] in [-1, 1] -> [B,2048].

    TensorFlow's network differs from torchvision's in the pooling of its mixed blocks: averages leave the padding out,
    and the last block takes the maximum.
    """
    network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False, transform_input=False)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        _pool(getattr(network, name), _branches_a)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        _pool(getattr(network, name), _branches_c)
    _pool(network.Mixed_7b, _branches_e)
    _pool(network.Mixed_7c, _branches_e, last=True)
    features = _Features(network)
    return features.requires_grad_(False).eval()


class _Features(nn.Module):
    """The network up to its pooled features, under the published names."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        for name, part in network.named_children():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.named_children():
            if name not in ("avgpool", "dropout", "fc"):
                x = part(x)
        return x.mean((2, 3))


def _pool(block: Any, branches: Any, last: bool = False) -> None:
    def forward(x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, 1, 1) if last else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*branches(block, x), block.branch_pool(pooled)], 1)

    block.forward = forward


def _branches_a(b: Any, x: Tensor) -> list[Tensor]:
    return [b.branch1x1(x), b.branch5x5_2(b.branch5x5_1(x)), b.branch3x3dbl_3(b.branch3x3dbl_2(b.branch3x3dbl_1(x)))]


def _branches_c(b: Any, x: Tensor) -> list[Tensor]:
    double = b.branch7x7dbl_3(b.branch7x7dbl_2(b.branch7x7dbl_1(x)))
    return [
        b.branch1x1(x),
        b.branch7x7_3(b.branch7x7_2(b.branch7x7_1(x))),
        b.branch7x7dbl_5(b.branch7x7dbl_4(double)),
    ]


def _branches_e(b: Any, x: Tensor) -> list[Tensor]:
    wide, double = b.branch3x3_1(x), b.branch3x3dbl_2(b.branch3x3dbl_1(x))
    split = [b.branch3x3_2a(wide), b.branch3x3_2b(wide), b.branch3x3dbl_3a(double), b.branch3x3dbl_3b(double)]
    return [b.branch1x1(x), *split]
