"""A labelled set of whole pictures of one byte a value, in memory or to be decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast.distill.data.streamed import Streamed

TESTED = 1024  # images that a network is tested on at a time


@dataclass(frozen=True, eq=False)
class Split:
    """A labelled set.

    Attributes:
        pixels: uint8 [N, C, H, W], levels; or what decodes them when they are asked for.
        labels: int64 [N].
        level: Pixel value in [0, 1] of one level.
    """

    pixels: Tensor | Streamed
    labels: Tensor
    level: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def levels(self) -> Tensor:
        """``pixels`` themselves; of a streamed set all of them, decoded anew at each call."""
        return self.pixels if isinstance(self.pixels, Tensor) else self.pixels.levels()

    @property
    def images(self) -> Tensor:
        """All of it in [0, 1]: float32 [N, C, H, W], made anew at each call, four times the memory of ``pixels``."""
        return self.levels.to(torch.float32).mul_(self.level)

    def to(self, device: torch.device | str) -> Split:
        """The same set on ``device``."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def take(self, rows: Tensor | slice) -> Split:
        """The set of these rows, in their order: a copy, or a view where ``rows`` is a slice."""
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])


class Source(NamedTuple):
    """What a reader returns: sets whose level is still 1."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    level: float  # pixel value in [0, 1] of one uint8 level
    validation: Split | None = None
