"""What our own networks have in common: the row of blocks, their shortcuts' pixels, the shuffle, initial weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn


class Classifier(nn.Module):
    """A network that gives the logits of its pooled features: ``head`` of ``embed(images)``."""

    head: nn.Linear

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features of ``images`` [B, C, H, W]: [B, D]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images`` [B, C, H, W]: [B, classes]."""
        return self.head(self.embed(images))


def stages(
    block: Callable[[int, int, int], nn.Module],
    channels: int,
    widths: Iterable[int],
    counts: int | Iterable[int],
    strides: Iterable[int] | None = None,
) -> nn.Sequential:
    """The blocks of all stages in a row.

    Args:
        block: Makes a block from its input channels, output channels and stride.
        channels: Channels of the first block's input.
        widths: Channels of each stage.
        counts: Blocks in each stage, or in every one.
        strides: Of each stage's first block; None: every stage but the first halves the image.
    """
    widths = list(widths)
    counts = [counts] * len(widths) if isinstance(counts, int) else counts
    strides = [1] + [2] * (len(widths) - 1) if strides is None else strides
    blocks = []
    for width, count, stride in zip(widths, counts, strides, strict=True):
        for position in range(count):
            blocks.append(block(channels, width, stride if position == 0 else 1))
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


def initialise_head(head: nn.Linear) -> None:
    """Draw a linear layer's weights with a standard deviation of 0.01, without a bias to begin with."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of ``x`` [B, C, H, W] dealt out anew: the first of each group, then the second of each, …"""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
