"""``shufflenetv2``: half of the channels pass by a block, then all are shuffled; for small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.networks import parts

_STEM, _WIDTHS, _LAST = 24, (116, 232, 464), 1024
COUNTS = (4, 8, 4)  # blocks in each stage


class Block(nn.Module):
    """Convolutions 1x1, depthwise 3x3 and 1x1 for the second half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.passing = half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x[:, self.passing :])))
        y = self.bn2(self.conv2(y))
        y = F.relu(self.bn3(self.conv3(y)))
        return parts.shuffled(torch.cat((x[:, : self.passing], y), 1), 2)


class DownBlock(nn.Module):
    """Half of the size: depthwise 3x3 and 1x1 convolutions make one half of the channels, a whole block the other."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(channels_in, channels_in, 3, 2, 1, groups=channels_in, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(channels_in, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        left = self.bn1(self.conv1(x))
        left = F.relu(self.bn2(self.conv2(left)))
        right = F.relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = F.relu(self.bn5(self.conv5(right)))
        return parts.shuffled(torch.cat((left, right), 1), 2)


def _block(channels_in: int, channels: int, stride: int) -> nn.Module:
    return Block(channels) if stride == 1 else DownBlock(channels_in, channels)


class ShuffleNetV2(parts.Classifier):
    """ShuffleNetV2 1x for small images: three stages of 116, 232 and 464 channels, each halving the image.

    N. Ma, X. Zhang, H.-T. Zheng, J. Sun, ShuffleNet V2: practical guidelines for efficient CNN architecture design
    (2018, https://arxiv.org/abs/1807.11164), table 5, as Y. Tian, D. Krishnan, P. Isola (2020,
    https://arxiv.org/abs/1910.10699) use it for images of 32 × 32 pixels: the stem is a 1x1 convolution without
    pooling. Weights start as PyTorch's do.

    Args:
        channels: Channels of the images.
        classes: Number of logits.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is not above zero.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.shufflenetv2 import ShuffleNetV2
        >>> network = ShuffleNetV2(channels=3, classes=100)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.embed(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 100]), torch.Size([2, 1024]))
        >>> sum(parameter.numel() for parameter in network.parameters())
        1355528
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        checks.positive("channels", channels)
        checks.positive("classes", classes)
        self.conv = nn.Conv2d(channels, _STEM, 1, bias=False)
        self.bn = nn.BatchNorm2d(_STEM)
        self.stages = parts.stages(_block, _STEM, _WIDTHS, COUNTS, (2, 2, 2))
        self.last_conv = nn.Conv2d(_WIDTHS[-1], _LAST, 1, bias=False)
        self.last_bn = nn.BatchNorm2d(_LAST)
        self.head = nn.Linear(_LAST, classes)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W]: [B, 1024]."""
        x = self.stages(F.relu(self.bn(self.conv(images))))
        return F.relu(self.last_bn(self.last_conv(x))).mean((2, 3))
