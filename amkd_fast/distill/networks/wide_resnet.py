"""``wrn-D-K``: residual networks that are wide rather than deep, with BatchNorm and ReLU before each convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.networks import parts

NAMES = "wrn-D-K with D = 6n + 4 from 10 on"
_STEM, _WIDTHS = 16, (16, 32, 64)


def is_depth(depth: int) -> bool:
    """Whether three stages of equally many blocks give ``depth``: 10, 16, 22, 28, 34, 40, …"""
    return depth >= 10 and depth % 6 == 4


class Block(nn.Module):
    """BatchNorm, ReLU and 3x3 convolution twice; the shortcut is the input or, of other shape, a 1x1 convolution."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(parts.subsampled(activated, self.stride))
        return self.conv2(F.relu(self.bn2(self.conv1(activated)))) + shortcut


class WideResNet(nn.Module):
    """A wide residual network: three stages of 16, 32 and 64 times ``width`` channels, (depth − 4) / 6 blocks each.

    S. Zagoruyko, N. Komodakis, Wide residual networks (2016, https://arxiv.org/abs/1605.07146), table 1 with the block
    B(3, 3), without dropout. A block that changes the shape activates its input once for both branches.

    Args:
        depth: Convolutions, with those of three shortcuts: 6n + 4 from 10 on. (Of ``width`` 1 the first stage needs
            no convolution in its shortcut; the name still counts it.)
        width: The widening factor.
        channels: Channels of the images.
        classes: Number of logits.

    Raises:
        TypeError: ``width``, ``channels`` or ``classes`` is no number.
        ValueError: ``depth`` is not 6n + 4 from 10 on, or another argument is not above zero.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.wide_resnet import WideResNet
        >>> network = WideResNet(depth=16, width=2, channels=3, classes=10)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.embed(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 10]), torch.Size([2, 128]))
        >>> sum(parameter.numel() for parameter in network.parameters())
        691674
    """

    def __init__(self, *, depth: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        if not is_depth(depth):
            raise ValueError(f"depth={depth!r}: must be 6n + 4 with a whole n of at least 1")
        for name, value in (("width", width), ("channels", channels), ("classes", classes)):
            checks.positive(name, value)
        self.conv = nn.Conv2d(channels, _STEM, 3, 1, 1, bias=False)
        widths = [base * width for base in _WIDTHS]
        self.stages = parts.stages(Block, _STEM, widths, (depth - 4) // 6)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)
        parts.initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W]: [B, 64 width]."""
        return F.relu(self.bn(self.stages(self.conv(images)))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images`` [B, C, H, W]: [B, classes]."""
        return self.head(self.embed(images))
