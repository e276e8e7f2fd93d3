"""Errors between the stages of two networks in PyTorch's own functions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.25, 0.25, 0.5, 1.0)


def mse_loss(*segments: Tensor) -> Tensor:
    """``F.mse_loss`` of each pair, weighted and added up, as trainers write it."""
    pairs = zip(WEIGHTS, segments[: len(WEIGHTS)], segments[len(WEIGHTS) :], strict=True)
    return sum(weight * F.mse_loss(student, teacher) for weight, student, teacher in pairs)
