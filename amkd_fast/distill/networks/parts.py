"""What our own networks have in common: the row of blocks, their shortcuts' pixels and the initial weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn


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


def subsampled(x: Tensor, stride: int) -> Tensor:
    """Every ``stride``-th pixel of ``x`` [B, C, H, W], those that a 1x1 convolution of that stride reads.

    Shortcuts do this before a convolution of stride 1. oneDNN 3.12 (torch 2.13 and 2.14 on a CPU) writes past its
    buffer in the gradient of the weights of a strided 1x1 convolution with fewer than 16 channels (AVX-512; AVX2: 8)
    whose images are channels_last.
    """
    return x if stride == 1 else x[:, :, ::stride, ::stride]


def initialise(network: nn.Module) -> None:
    """Draw the convolutions' weights as for ReLUs (He et al. 2015, https://arxiv.org/abs/1502.01852, equation 14)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
