"""``resnetD-b``, ``resnetDx4``: the residual networks for CIFAR with learned shortcuts, also four times as wide."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.distill.networks import cifar_resnet, parts
from amkd_fast.distill.networks.basic_block import Block


class CifarResNetB(parts.Classifier):
    """A residual network for small images: three stages of (depth − 2) / 6 basic blocks each, shortcuts of option B.

    K. He, X. Zhang, S. Ren, J. Sun, Deep residual learning for image recognition (2016, https://arxiv.org/abs/1512.03385),
    section 4.2, but with a 1x1 convolution and BatchNorm in the shortcuts that change the shape. These are the
    networks that the literature on distillation since Y. Tian, D. Krishnan, P. Isola, Contrastive representation
    distillation (2020, https://arxiv.org/abs/1910.10699) calls ResNet8, ResNet20, … ResNet110 (widths 16, 32, 64) and
    ResNet8x4 and ResNet32x4 (widths 64, 128, 256 behind a stem of 32 channels).

    Args:
        depth: Layers with weights on the longest path: 8, 14, 20, 26, 32, 44, 56 or 110.
        stem: Channels of the first convolution.
        widths: Channels of the three stages.
        channels: Channels of the images.
        classes: Number of logits.

    Raises:
        TypeError: A number is none.
        ValueError: ``depth`` is another one, ``widths`` are not three, or a number is not above zero.

    Example:
        >>> import torch
        >>> from amkd_fast.distill.networks.cifar_resnet_b import CifarResNetB
        >>> network = CifarResNetB(depth=8, stem=32, widths=(64, 128, 256), channels=3, classes=100)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.embed(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 100]), torch.Size([2, 256]))
        >>> sum(parameter.numel() for parameter in network.parameters())
        1233540
    """

    def __init__(
        self, *, depth: int, stem: int = 16, widths: Sequence[int] = (16, 32, 64), channels: int, classes: int
    ) -> None:
        super().__init__()
        checks.choice("depth", depth, cifar_resnet.DEPTHS)
        for name, value in (("stem", stem), ("channels", channels), ("classes", classes)):
            checks.positive(name, value)
        if len(widths) != 3:
            raise ValueError(f"widths={widths!r}: must be three numbers")
        for width in widths:
            checks.positive("widths", width)
        self.conv = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        self.stages = parts.stages(Block, stem, widths, (depth - 2) // 6)
        self.head = nn.Linear(widths[-1], classes)
        parts.initialise(self)

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W]: [B, widths[-1]]."""
        return self.stages(F.relu(self.bn(self.conv(images)))).mean((2, 3))
