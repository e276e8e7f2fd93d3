"""Decoupled knowledge distillation as a module."""

from __future__ import annotations

from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.ops.kl.decoupled import dkd_loss


class DKDLoss(nn.Module):
    """Module of :func:`amkd_fast.dkd_loss`.

    Args:
        temperature: T > 0 that divides both logits.
        target_weight: α, weight of the target's divergence.
        other_weight: β, weight of the divergence among the other classes.
        scale_by_t2: Multiply by T².
        reduction: ``"none"``, ``"sum"``, ``"mean"`` or ``"batchmean"``.

    Shape:
        ``forward(student, teacher, labels, weight=None)``: logits [..., K] twice, labels [...], weight a float or
        [...]; scalar, or [...] for ``"none"``.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import DKDLoss
        >>> criterion = DKDLoss(temperature=2.0, other_weight=4.0)
        >>> loss = criterion(torch.zeros(2, 3, requires_grad=True), torch.eye(2, 3), torch.tensor([0, 2]))
        >>> f"{loss.item():.4f}"
        '0.3191'
    """

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        scale_by_t2: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        checks.positive("temperature", temperature)
        checks.finite("target_weight", target_weight)
        checks.finite("other_weight", other_weight)
        checks.choice("reduction", reduction, ("none", "sum", "mean", "batchmean"))
        self.temperature, self.target_weight, self.other_weight = temperature, target_weight, other_weight
        self.scale_by_t2, self.reduction = scale_by_t2, reduction

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor, weight: float | Tensor | None = None) -> Tensor:
        return dkd_loss(
            student,
            teacher,
            labels,
            self.temperature,
            target_weight=self.target_weight,
            other_weight=self.other_weight,
            weight=weight,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, target_weight={self.target_weight}, other_weight={self.other_weight}, "
            f"reduction={self.reduction!r}"
        )
