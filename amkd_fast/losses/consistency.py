"""Module of cosine-confidence distillation."""

from __future__ import annotations

from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.ops.kl.consistency import ConsistencyKL, consistency_kl


class ConsistencyLoss(nn.Module):
    """Module of :func:`amkd_fast.consistency_kl`: a clean and an augmented view, weighted by the teacher's consistency.

    Args:
        temperature: T > 0 that divides all logits.
        scale_by_t2: Multiply by T².

    Shape:
        ``forward(student, teacher, augmented_student, augmented_teacher)``: logits [B, K] four times; returns
        ``ConsistencyKL(total, clean, augmented, confidence)``, scalars and [B], of which ``total`` has the graph.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import ConsistencyLoss
        >>> student, teacher = torch.zeros(2, 3, requires_grad=True), torch.eye(2, 3)
        >>> loss = ConsistencyLoss(temperature=4.0)(student, teacher, student, teacher)
        >>> f"{loss.total.item():.4f}"  # the same view twice: ½ (KL + 2 KL)
        '0.1750'
    """

    def __init__(self, temperature: float = 4.0, *, scale_by_t2: bool = True) -> None:
        super().__init__()
        checks.positive("temperature", temperature)
        self.temperature, self.scale_by_t2 = temperature, scale_by_t2

    def forward(
        self, student: Tensor, teacher: Tensor, augmented_student: Tensor, augmented_teacher: Tensor
    ) -> ConsistencyKL:
        return consistency_kl(
            student, teacher, augmented_student, augmented_teacher, self.temperature, scale_by_t2=self.scale_by_t2
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, scale_by_t2={self.scale_by_t2}"
