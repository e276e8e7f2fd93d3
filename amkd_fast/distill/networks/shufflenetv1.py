"""``shufflenetv1``: grouped 1x1 convolutions whose channels are shuffled between, for small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.networks import parts

_STEM, _WIDTHS, _GROUPS = 24, (240, 480, 960), 3
COUNTS = (4, 8, 4)  # blocks in each stage


class Block(nn.Module):
    """Convolutions 1x1, depthwise 3x3 and 1x1, added to the input or, at stride 2, put before its means."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        made = channels if stride == 1 else channels - channels_in
        inner = made // 4
        self.groups = 1 if channels_in == _STEM else _GROUPS  # the stem's are few
        self.conv1 = nn.Conv2d(channels_in, inner, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, made, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(made)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        if self.groups > 1:
            y = parts.shuffled(y, self.groups)
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + x if self.stride == 1 else torch.cat((y, F.avg_pool2d(x, 3, self.stride, 1)), 1))


class ShuffleNetV1(parts.Classifier):
    """ShuffleNet of three groups for small images: three stages of 240, 480 and 960 channels, each halving the image.

    X. Zhang, X. Zhou, M. Lin, J. Sun, ShuffleNet: an extremely efficient convolutional neural network for mobile
    devices (2018, https://arxiv.org/abs/1707.01083), table 1, as Y. Tian, D. Krishnan, P. Isola (2020,
    https://arxiv.org/abs/1910.10699) use it for images of 32 × 32 pixels: the stem is a 1x1 convolution without
    pooling, and a ReLU follows the depthwise convolution. Weights start as PyTorch's do.

    Args:
        channels: Channels of the images.
        classes: Number of logits.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is not above zero.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.shufflenetv1 import ShuffleNetV1
        >>> network = ShuffleNetV1(channels=3, classes=100)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.embed(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 100]), torch.Size([2, 960]))
        >>> sum(parameter.numel() for parameter in network.parameters())
        949258
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        checks.positive("channels", channels)
        checks.positive("classes", classes)
        self.conv = nn.Conv2d(channels, _STEM, 1, bias=False)
        self.bn = nn.BatchNorm2d(_STEM)
        self.stages = parts.stages(Block, _STEM, _WIDTHS, COUNTS, (2, 2, 2))
        self.head = nn.Linear(_WIDTHS[-1], classes)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W]: [B, 960]."""
        return self.stages(F.relu(self.bn(self.conv(images)))).mean((2, 3))
