"""Decoupled knowledge distillation as a module."""

from __future__ import annotations

from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.ops.kl.decoupled import dkd_loss
from amkd_fast.ops.kl.scalars import checked_temperature


class DKDLoss(nn.Module):
    """Module of :func:`amkd_fast.dkd_loss`.

    Args:
        temperature: T > 0 that divides both logits.
        target_weight: α, weight of the target's divergence.
        other_weight: β, weight of the divergence among the other classes.
        scale_by_t2: Multiply by T².
        reduction: ``"none"``, ``"sum"``, ``"mean"`` or ``"batchmean"``.
        dim: The dimension that holds the classes.

    Shape:
        ``forward(student, teacher, labels, weight=None, mask=None)``: logits [..., K] twice, labels [...], weight a
        float or [...], mask bool [...]; scalar, or [...] for ``"none"``.

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
        temperature: float | Tensor = 4.0,
        *,
        target_weight: float = 1.0,
        other_weight: float = 8.0,
        scale_by_t2: bool = True,
        reduction: str = "mean",
        dim: int = -1,
    ) -> None:
        super().__init__()
        checked_temperature(temperature)
        checks.finite("target_weight", target_weight)
        checks.finite("other_weight", other_weight)
        checks.choice("reduction", reduction, ("none", "sum", "mean", "batchmean"))
        self.temperature, self.target_weight, self.other_weight = temperature, target_weight, other_weight
        self.scale_by_t2, self.reduction, self.dim = scale_by_t2, reduction, dim

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor,
        weight: float | Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        return dkd_loss(
            student,
            teacher,
            labels,
            self.temperature,
            target_weight=self.target_weight,
            other_weight=self.other_weight,
            weight=weight,
            mask=mask,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
            dim=self.dim,
        )

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, target_weight={self.target_weight}, other_weight={self.other_weight}, "
            f"reduction={self.reduction!r}"
        )
