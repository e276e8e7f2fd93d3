"""Errors between the stages of two networks in PyTorch's own functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines import written
from benchmarks.contest import Contestant


def segment_mse(weights: Sequence[float]) -> list[Contestant]:
    """``F.mse_loss`` of each pair, weighted and added up, as trainers write it."""

    def mse_loss(*segments: Tensor) -> Tensor:
        pairs = zip(weights, segments[: len(weights)], segments[len(weights) :], strict=True)
        return sum(weight * F.mse_loss(student, teacher) for weight, student, teacher in pairs)

    return written("mse_loss", mse_loss)
