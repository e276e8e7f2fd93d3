"""A labelled batch, as methods take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """What one step learns from."""

    images: Tensor  # [B, C, H, W], normalised
    labels: Tensor  # [B], int64
    index: Tensor | None = None  # [B], rows of the training set
    teacher_logits: Tensor | None = None  # [B, K], where they are known already
