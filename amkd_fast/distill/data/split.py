"""A labelled set that lies in memory as whole pictures of one byte a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """A labelled set; normalised are ``pixels * scale + shift``.

    Attributes:
        pixels: uint8 [N, C, H, W], levels.
        labels: int64 [N].
        scale: One for all channels, so that a radius in pixels is one number.
        shift: One a channel; none as long as nothing is normalised.
    """

    pixels: Tensor
    labels: Tensor
    scale: float = 1.0
    shift: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All of it normalised: float32 [N, C, H, W], made anew at each call, four times the memory of ``pixels``."""
        images = self.pixels.to(torch.float32).mul_(self.scale)
        for channel, shift in enumerate(self.shift):
            images[:, channel] += shift
        return images

    def to(self, device: torch.device | str) -> Split:
        """The same set resident on ``device``."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def take(self, rows: Tensor | slice) -> Split:
        """The set of these rows, in their order: a copy, or a view where ``rows`` is a slice."""
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])

    def normalised(self, level: float, mean: tuple[float, ...], std: float) -> Split:
        """The set with the scale and the shift that make its images ``(pixels * level - mean) / std``."""
        return replace(self, scale=level / std, shift=tuple(-value / std for value in mean))


class Source(NamedTuple):
    """What a reader returns: sets that are not normalised yet."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    level: float  # pixel value in [0, 1] of one uint8 level
    validation: Split | None = None
