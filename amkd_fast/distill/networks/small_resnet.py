"""``small-W-B``: ResNets of three stages for experiments that must be quick, with learned shortcuts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.networks import parts
from amkd_fast.distill.networks.basic_block import Block


class ResNet(nn.Module):
    """ResNet with stages of ``width``, ``2 width`` and ``4 width`` channels and ``blocks`` basic blocks each.

    The stem, stages and basic blocks are those of the CIFAR networks of He et al. (2016, https://arxiv.org/abs/1512.03385,
    section 4.2); where the shape changes, the shortcut is their option B.

    Args:
        width: Channels of the first stage.
        blocks: Basic blocks in each of the three stages.
        channels: Channels of the images.
        classes: Number of logits.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is not above zero.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.small_resnet import ResNet
        >>> ResNet(width=4, blocks=1, channels=1, classes=10)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, *, width: int, blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        for name, value in (("width", width), ("blocks", blocks), ("channels", channels), ("classes", classes)):
            checks.positive(name, value)
        self.config = {"width": width, "blocks": blocks, "channels": channels, "classes": classes}
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.stages = parts.stages(Block, width, (width, 2 * width, 4 * width), blocks)
        self.head = nn.Linear(4 * width, classes)
        parts.initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W]: [B, 4 width]."""
        return self.stages(F.relu(self.bn(self.conv(images)))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images`` [B, C, H, W]: [B, classes]."""
        return self.head(self.embed(images))
