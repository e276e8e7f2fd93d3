"""The basic block of residual networks, whose shortcut is a 1x1 convolution where the shape changes (option B)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast.distill.networks import parts


def projection(channels_in: int, channels: int, stride: int) -> nn.Module:
    """Option B: a 1x1 convolution and BatchNorm for every ``stride``-th pixel, or nothing where the shape stays."""
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels))


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (1x1 convolution where the shape changes)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = projection(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        # First, so that the sum of the gradients in x lies as the 3x3 convolution's does.
        shortcut = self.shortcut(parts.subsampled(x, self.stride))
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)
