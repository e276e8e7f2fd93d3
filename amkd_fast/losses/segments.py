"""The module of the errors between stages of two networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.ops.segments import segment_mse


class SegmentMSELoss(nn.Module):
    """Module of :func:`amkd_fast.segment_mse`, the loss of Extended-KD (a reconstruction from its abstract).

    Args:
        weights: One weight for each segment; None for all 1.

    Shape:
        ``forward(student, teacher)``: two sequences of tensors, pairwise of one shape; scalar.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import SegmentMSELoss
        >>> student, teacher = [torch.zeros(2, 8, 4, 4), torch.zeros(2, 3)], [torch.ones(2, 8, 4, 4), torch.ones(2, 3)]
        >>> SegmentMSELoss(weights=[0.25, 2.0])(student, teacher)
        tensor(2.2500)
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.weights = None if weights is None else [checks.finite("weights", weight) for weight in weights]

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        return segment_mse(student, teacher, self.weights)

    def extra_repr(self) -> str:
        return f"weights={self.weights}"
