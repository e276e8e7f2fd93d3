"""``vggD``: rows of 3x3 convolutions with BatchNorm, for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.networks import parts

_WIDTHS = (64, 128, 256, 512, 512)
COUNTS = {  # convolutions in each stage
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class Block(nn.Module):
    """A 3x3 convolution, BatchNorm and ReLU, with stride 2 behind the maximum of 2 × 2 pixels."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if stride == 2 else nn.Identity()
        self.conv = nn.Conv2d(channels_in, channels, 3, 1, 1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(self.pool(x))))


class VGG(parts.Classifier):
    """Five stages of 64, 128, 256, 512 and 512 channels, the first three each followed by a pooling that halves.

    K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition (2015,
    https://arxiv.org/abs/1409.1556), configurations A, B, D and E with BatchNorm, and one of 8 layers. For images of
    32 × 32 pixels the fourth pooling is left out, the last is the mean of what is left, and one linear layer follows:
    the VGG networks of Y. Tian, D. Krishnan, P. Isola (2020, https://arxiv.org/abs/1910.10699). (Their code pools a
    fourth time when images are 64 pixels high; this one does not.)

    Args:
        depth: 8, 11, 13, 16 or 19; the name's, which counts the three linear layers of the paper.
        channels: Channels of the images.
        classes: Number of logits.

    Raises:
        TypeError: ``channels`` or ``classes`` is no number.
        ValueError: ``depth`` is another one, or ``channels`` or ``classes`` is not above zero.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.vgg import VGG
        >>> network = VGG(depth=8, channels=3, classes=100)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.embed(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 100]), torch.Size([2, 512]))
        >>> sum(parameter.numel() for parameter in network.parameters())
        3965028
    """

    def __init__(self, *, depth: int, channels: int, classes: int) -> None:
        super().__init__()
        checks.choice("depth", depth, tuple(COUNTS))
        checks.positive("channels", channels)
        checks.positive("classes", classes)
        self.stages = parts.stages(Block, channels, _WIDTHS, COUNTS[depth], (1, 2, 2, 2, 1))
        self.head = nn.Linear(_WIDTHS[-1], classes)
        parts.initialise(self)
        parts.initialise_head(self.head)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W], from 8 × 8 pixels on: [B, 512]."""
        return self.stages(images).mean((2, 3))
