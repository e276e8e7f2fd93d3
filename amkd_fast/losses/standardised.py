"""Module of the standardised KL divergence."""

from __future__ import annotations

from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.ops.kl.scalars import checked_temperature
from amkd_fast.ops.kl.standardised import standardised_kl_div


class StandardisedKLLoss(nn.Module):
    """Module of :func:`amkd_fast.standardised_kl_div`.

    Args:
        temperature: T > 0 that divides the standardised logits.
        scale_by_t2: Multiply by T².
        reduction: ``"none"``, ``"sum"``, ``"mean"`` or ``"batchmean"``.

    Shape:
        ``forward(student, teacher, weight=None)``: logits [..., K] twice, weight a float or [...]; scalar, or [...] for
        ``"none"``.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import StandardisedKLLoss
        >>> teacher = torch.eye(2, 3)
        >>> loss = StandardisedKLLoss(temperature=2.0)(torch.zeros(2, 3, requires_grad=True), teacher)
        >>> f"{loss.item():.4f}"
        '0.3700'
    """

    def __init__(
        self,
        temperature: float | Tensor = 1.0,
        *,
        scale_by_t2: bool = True,
        reduction: str = "batchmean",
        dim: int = -1,
    ) -> None:
        super().__init__()
        checked_temperature(temperature)
        checks.choice("reduction", reduction, ("none", "sum", "mean", "batchmean"))
        self.temperature, self.scale_by_t2, self.reduction, self.dim = temperature, scale_by_t2, reduction, dim

    def forward(
        self, student: Tensor, teacher: Tensor, weight: float | Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        return standardised_kl_div(
            student,
            teacher,
            self.temperature,
            weight=weight,
            mask=mask,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
            dim=self.dim,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, scale_by_t2={self.scale_by_t2}, reduction={self.reduction!r}"
