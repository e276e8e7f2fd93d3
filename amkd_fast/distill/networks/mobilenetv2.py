"""``mobilenetv2``: inverted residuals with depthwise convolutions, at half the width, for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.networks import parts

_STEM, _WIDTHS, _LAST = 16, (8, 12, 16, 32, 48, 80, 160), 1280  # half of the paper's but for the last
COUNTS = (1, 2, 3, 4, 3, 3, 1)  # blocks in each stage
_STRIDES = (1, 1, 2, 2, 1, 2, 1)
_EXPANSION = 6


class Block(nn.Module):
    """A 1x1 convolution to ``expansion`` times the channels, a depthwise 3x3 one, and a linear 1x1 one back."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int = _EXPANSION) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.residual = stride == 1 and channels_in == channels
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return x + y if self.residual else y


class MobileNetV2(parts.Classifier):
    """MobileNetV2 of width 0.5 for small images: 17 inverted residuals, 1280 features.

    M. Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks (2018, https://arxiv.org/abs/1801.04381),
    table 2, as Y. Tian, D. Krishnan, P. Isola (2020, https://arxiv.org/abs/1910.10699) use it for images of 32 × 32
    pixels: the second stage keeps the size, ReLU stands for ReLU6, the first block has its 1x1 convolution to as
    many channels, and there is no dropout.

    Args:
        channels: Channels of the images.
        classes: Number of logits.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is not above zero.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.mobilenetv2 import MobileNetV2
        >>> network = MobileNetV2(channels=3, classes=100)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.embed(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 100]), torch.Size([2, 1280]))
        >>> sum(parameter.numel() for parameter in network.parameters())
        812836
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        checks.positive("channels", channels)
        checks.positive("classes", classes)
        self.conv = nn.Conv2d(channels, _STEM, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(_STEM)
        later = parts.stages(Block, _WIDTHS[0], _WIDTHS[1:], COUNTS[1:], _STRIDES[1:])
        self.stages = nn.Sequential(Block(_STEM, _WIDTHS[0], _STRIDES[0], expansion=1), *later)
        self.last_conv = nn.Conv2d(_WIDTHS[-1], _LAST, 1, bias=False)
        self.last_bn = nn.BatchNorm2d(_LAST)
        self.head = nn.Linear(_LAST, classes)
        parts.initialise(self)
        parts.initialise_head(self.head)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W]: [B, 1280]."""
        x = self.stages(F.relu(self.bn(self.conv(images))))
        return F.relu(self.last_bn(self.last_conv(x))).mean((2, 3))
