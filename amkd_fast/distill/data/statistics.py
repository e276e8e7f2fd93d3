"""Mean and standard deviation of a set's pixels."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast.distill.data.split import Split
from amkd_fast.distill.errors import UserError

AT_ONCE = 4096  # pictures of a streamed set that are decoded and counted together


class Moments(NamedTuple):
    """In [0, 1] pixel units."""

    mean: tuple[float, ...]  # one a channel
    std: float  # over all channels
    stds: tuple[float, ...]  # one a channel


class Statistics:
    """Those of a split, found when they are first asked for: a streamed set is decoded for them.

    Args:
        split: On the CPU; it is let go once they are found.
        name: Of the data, for the error.
    """

    def __init__(self, split: Split, name: str) -> None:
        self._split: Split | None = split
        self._name = name

    @cached_property
    def moments(self) -> Moments:
        """Raises :class:`UserError` where all pixels are the same."""
        split, self._split = self._split, None
        assert split is not None, "cached"
        found = moments(split)
        if found.std == 0.0:
            raise UserError(f"--data {self._name}: all training images are of one colour")
        return found


def moments(split: Split) -> Moments:
    """From histograms: exact, and no float copy of the set."""
    channels, level = range(split.pixels.shape[1]), split.level
    resident = isinstance(split.pixels, Tensor)
    counts = torch.zeros(len(channels), 256, dtype=torch.int64)
    for part in [split] if resident else map(split.take, torch.arange(len(split)).split(AT_ONCE)):
        pixels = part.levels
        counts += torch.stack([torch.bincount(pixels[:, c].flatten(), minlength=256) for c in channels])
    values = torch.arange(256)
    sums, squares = ((counts * values**power).sum(1).tolist() for power in (1, 2))  # [C], Python's integers
    each = int(counts[0].sum())

    def spread(count: int, total: int, square: int) -> float:
        return level * math.sqrt((square * count - total * total) / (count * max(count - 1, 1)))

    stds = tuple(spread(each, *of_channel) for of_channel in zip(sums, squares, strict=True))
    mean = tuple(level * value / each for value in sums)
    return Moments(mean, spread(each * len(sums), sum(sums), sum(squares)), stds)
