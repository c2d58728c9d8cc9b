"""Stock diffusers networks that begin as a linear map of what they are given.

Trained from scratch, a network that ends in group norm, SiLU and a convolution needs thousands of iterations until it
hands a signal on without loss, since the norm takes the scale away and SiLU cuts below zero. Both are linear where

* each signal lies in two channels, once negated: silu(a) - silu(-a) = a;
* each group has two constant channels, +K and -K, so large that its mean is 0 and its deviation nearly constant.

Residual blocks begin by adding nothing. All of it is only a start: every weight is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

_CONSTANT = 64.0


def centre(matrix: Tensor, kernel: int) -> Tensor:
    """Weights [outputs, inputs, kernel, kernel] of a convolution that applies `matrix` to each pixel."""
    weight = matrix.new_zeros(*matrix.shape, kernel, kernel)
    weight[..., kernel // 2, kernel // 2] = matrix
    return weight


@torch.no_grad()
def place(conv: nn.Conv2d, rows: Tensor) -> None:
    """The first outputs of `conv` become `rows` of its first inputs, [n, m, kh, kw], without bias; others stay."""
    assert conv.bias is not None
    conv.weight[: len(rows)] = 0
    conv.weight[: len(rows), : rows.shape[1]] = rows
    conv.bias[: len(rows)] = 0


@torch.no_grad()
def carry(block: ResnetBlock2D, signals: int) -> None:
    """The block hands its first channels on as they are, and adds nothing."""
    assert isinstance(block.conv2, nn.Conv2d) and block.conv2.bias is not None
    block.conv2.weight.zero_()
    block.conv2.bias.zero_()
    if block.conv_shortcut is not None:
        place(block.conv_shortcut, centre(torch.eye(signals), 1))


@torch.no_grad()
def linear_end(
    into: nn.Conv2d, rows: Tensor, blocks: Iterable[ResnetBlock2D], norm: nn.GroupNorm, out: nn.Conv2d
) -> None:
    """Of `into` - blocks - norm - SiLU - `out` make a map whose first outputs are `rows` of the inputs.

    Args:
        into: the last convolution before `norm` but for residual `blocks`, which get `carry`.
        rows: weights [signals, inputs, kh, kw] of `into`; the signals should be far below `_CONSTANT`.

    Raises:
        ValueError: too few channels for so many signals.
    """
    assert into.bias is not None and out.bias is not None
    size = norm.num_channels // norm.num_groups
    each = (size - 2) // 2  # signals of a group
    if each * norm.num_groups < len(rows):
        raise ValueError(
            f"{norm.num_channels} channels in {norm.num_groups} groups hand on {each * norm.num_groups} signals, not "
            f"{len(rows)}; choose more channels"
        )
    plus = torch.tensor([k // each * size + k % each * 2 for k in range(len(rows))])
    groups = torch.arange(-(-len(rows) // each)) * size
    constants = torch.cat([groups + size - 2, groups + size - 1])
    deviation = _CONSTANT * math.sqrt(2 / size)
    used = torch.cat([groups + i for i in range(size)])
    into.weight[used] = 0
    into.bias[used] = 0
    into.weight[plus, : rows.shape[1]] = rows
    into.weight[plus + 1, : rows.shape[1]] = -rows
    into.bias[groups + size - 2] = _CONSTANT
    into.bias[groups + size - 1] = -_CONSTANT
    for block in blocks:
        carry(block, 0)
        block.norm1.weight[used] = deviation
        block.norm1.weight[constants] = 0
    norm.weight[used] = deviation
    norm.weight[constants] = 0
    # Channels of the same groups say nothing yet, and those of other groups are not listened to yet.
    others = [i for i in range(norm.num_channels) if i not in set(used.tolist())]
    out.weight[:, others] = 0
    out.bias[: len(rows)] = 0
    middle = tuple(side // 2 for side in out.kernel_size)
    for k, channel in enumerate(plus.tolist()):
        out.weight[: len(rows), channel : channel + 2] = 0
        out.weight[k, channel, middle[0], middle[1]] = 1
        out.weight[k, channel + 1, middle[0], middle[1]] = -1
