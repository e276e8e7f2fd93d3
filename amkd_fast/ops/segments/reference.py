"""The segments family in plain PyTorch: the definition that every kernel is tested against.

Differentiable any number of times, in the students, the teachers and the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amkd_fast.ops.row_loss import statistics_dtype as statistics_dtype


def segment_mse(student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Σ weights[i] · mean((student[i] − teacher[i])²), in the dtype of ``weights`` [S]."""
    loss = weights.new_zeros(())
    for s, t, weight in zip(student, teacher, weights.unbind(), strict=True):
        difference = s.to(weights.dtype) - t.to(weights.dtype)
        difference = torch.where(weight == 0, 0.0, difference)
        loss = loss + weight * (difference.square().sum() / max(s.numel(), 1))
    return loss
