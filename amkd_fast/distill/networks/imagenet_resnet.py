"""``resnet18``, ``resnet50``: ImageNet's residual networks with a stem for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.networks import parts
from amkd_fast.distill.networks.basic_block import Block, projection

_STEM, _WIDTHS, _EXPANSION = 64, (64, 128, 256, 512), 4
COUNTS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}  # blocks in each stage


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1, a quarter as wide inside, with the shortcut of a basic block."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, inner = stride, channels // _EXPANSION
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = projection(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(parts.subsampled(x, self.stride))
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


class ImageNetResNet(parts.Classifier):
    """A residual network of four stages, 64, 128, 256 and 512 channels wide, or four times that with bottlenecks.

    K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition (2016, https://arxiv.org/abs/1512.03385),
    table 1 with shortcuts of option B; for images of 32 × 32 pixels the stem is one 3x3 convolution without pooling.
    A bottleneck strides in its 3x3 convolution.

    Args:
        depth: Layers with weights on the longest path: 18 (basic blocks) or 50 (bottlenecks).
        channels: Channels of the images.
        classes: Number of logits.

    Raises:
        TypeError: ``channels`` or ``classes`` is no number.
        ValueError: ``depth`` is another one, or ``channels`` or ``classes`` is not above zero.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.imagenet_resnet import ImageNetResNet
        >>> with torch.device("meta"):
        ...     network = ImageNetResNet(depth=50, channels=3, classes=100)
        >>> network.embed(torch.zeros(2, 3, 32, 32, device="meta")).shape
        torch.Size([2, 2048])
        >>> sum(parameter.numel() for parameter in network.parameters())
        23705252
    """

    def __init__(self, *, depth: int, channels: int, classes: int) -> None:
        super().__init__()
        checks.choice("depth", depth, tuple(COUNTS))
        checks.positive("channels", channels)
        checks.positive("classes", classes)
        block, expansion = (Bottleneck, _EXPANSION) if depth == 50 else (Block, 1)
        widths = [width * expansion for width in _WIDTHS]
        self.conv = nn.Conv2d(channels, _STEM, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(_STEM)
        self.stages = parts.stages(block, _STEM, widths, COUNTS[depth])
        self.head = nn.Linear(widths[-1], classes)
        parts.initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W]: [B, 512], with bottlenecks [B, 2048]."""
        return self.stages(F.relu(self.bn(self.conv(images)))).mean((2, 3))
