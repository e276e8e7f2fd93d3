"""What our own networks have in common: the row of blocks and the initial weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn


def stages(
    block: Callable[[int, int, int], nn.Module], channels: int, widths: Iterable[int], count: int
) -> nn.Sequential:
    """``count`` blocks of each width; every stage but the first halves the image.

    Args:
        block: Makes a block from its input channels, output channels and stride.
        channels: Channels of the first block's input.
        widths: Channels of each stage.
        count: Blocks in a stage.
    """
    blocks = []
    for stage, width in enumerate(widths):
        for position in range(count):
            blocks.append(block(channels, width, 2 if stage > 0 and position == 0 else 1))
            channels = width
    return nn.Sequential(*blocks)


def initialise(network: nn.Module) -> None:
    """Draw the convolutions' weights as for ReLUs (He et al. 2015, https://arxiv.org/abs/1502.01852, equation 14)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
