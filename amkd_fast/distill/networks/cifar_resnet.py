"""``resnetD``: the residual networks for CIFAR, whose shortcuts have no parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.networks import parts

DEPTHS = (8, 14, 20, 26, 32, 44, 56, 110)
_WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut: the input, every second pixel and more channels where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, channels - channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A: ``x`` [B, C, H, W] at the block's stride, zeros in the channels it does not have."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        return F.pad(parts.subsampled(x, self.stride), (0, 0, 0, 0, 0, self.new_channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)  # first, so that the sum of the gradients in x lies as the convolution's does
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + shortcut)


class CifarResNet(nn.Module):
    """A residual network for small images: three stages of 16, 32 and 64 channels, (depth − 2) / 6 basic blocks each.

    K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition (2016, https://arxiv.org/abs/1512.03385),
    section 4.2, with the shortcuts of option A. The depths 8, 14 and 26, which the paper does not train, follow its
    rule.

    Args:
        depth: Layers with weights on the longest path: 8, 14, 20, 26, 32, 44, 56 or 110.
        channels: Channels of the images.
        classes: Number of logits.

    Raises:
        TypeError: ``channels`` or ``classes`` is no number.
        ValueError: ``depth`` is another one, or ``channels`` or ``classes`` is not above zero.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.cifar_resnet import CifarResNet
        >>> network = CifarResNet(depth=20, channels=3, classes=10)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.embed(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 10]), torch.Size([2, 64]))
        >>> sum(parameter.numel() for parameter in network.parameters())
        269722
    """

    def __init__(self, *, depth: int, channels: int, classes: int) -> None:
        super().__init__()
        checks.choice("depth", depth, DEPTHS)
        checks.positive("channels", channels)
        checks.positive("classes", classes)
        self.conv = nn.Conv2d(channels, _WIDTHS[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(_WIDTHS[0])
        self.stages = parts.stages(Block, _WIDTHS[0], _WIDTHS, (depth - 2) // 6)
        self.head = nn.Linear(_WIDTHS[-1], classes)
        parts.initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W]: [B, 64]."""
        return self.stages(F.relu(self.bn(self.conv(images)))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images`` [B, C, H, W]: [B, classes]."""
        return self.head(self.embed(images))
