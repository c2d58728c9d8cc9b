"""FID (Heusel et al. 2017, arXiv 1706.08500) with the published Inception weights, which users download.

The network is TensorFlow's Inception of 2015 as PyTorch has it; pictures are resized as clean-fid does (bicubic, with
antialiasing). Compare only with figures of the same resizing and number of pictures: FID of few is biased.
"""

from __future__ import annotations

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
SIDE = 299


class Fid:
    """Gathers features of restored pictures and of originals."""

    def __init__(self, folder: Path) -> None:
        """Of the file `WEIGHTS` in `folder`.

        Raises:
            CheckpointError: it is absent or another network's.
        """
        file = folder / WEIGHTS
        if not file.is_file():
            raise CheckpointError(f"{file} is absent: FID needs {WEIGHTS}, as pytorch-fid publishes it")
        self.network = inception()
        load_strict(self.network, read_state(file), file)
        self._features: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])

    @torch.no_grad()
    def add(self, restored: NDArray[np.uint8], gt: NDArray[np.uint8]) -> None:
        """uint8 [H, W, 3] each."""
        features = self.network(torch.stack([resized(image) for image in (restored, gt)]) * 2 - 1)
        for side, vector in zip(self._features, features.double().numpy(), strict=True):
            side.append(vector)

    def value(self) -> float:
        """Raises ValueError for fewer than two pictures."""
        if len(self._features[0]) < 2:
            raise ValueError("fid: a covariance takes at least two pictures")
        return frechet_distance(*(np.stack(side) for side in self._features))


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
