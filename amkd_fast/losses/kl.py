"""Modules of the losses of ``amkd_fast.ops.kl``: softened divergences between the logits of two networks."""

from __future__ import annotations

from torch import Tensor, nn

from amkd_fast import checks
from amkd_fast.ops.kl import DistillationTerms, distillation_loss, kl_div
from amkd_fast.ops.kl.consistency import ConsistencyKL, consistency_kl
from amkd_fast.ops.kl.decoupled import dkd_loss
from amkd_fast.ops.kl.op import IGNORED_ROWS
from amkd_fast.ops.kl.scalars import CHOICES, DIVERGENCES, checked_temperature
from amkd_fast.ops.kl.standardised import standardised_kl_div
from amkd_fast.typing import Divergence, IgnoredRows, Reduction


class KLDivLoss(nn.Module):
    """Module of :func:`amkd_fast.kl_div`.

    Args:
        temperature: T > 0 that divides both logits; a parameter [] of it learns.
        divergence: ``"forward"``, ``"reverse"`` or ``"js"``.
        beta: Weight of the teacher in ``js``, strictly between 0 and 1.
        scale_by_t2: Multiply by T².
        reduction: ``"none"``, ``"sum"``, ``"mean"`` or ``"batchmean"``.
        dim: The dimension that holds the classes.
        inplace_backward: Write the gradient over the student's logits, as in :func:`amkd_fast.kl_div`.

    Shape:
        ``forward(student, teacher, weight=None, mask=None)``: logits [..., K] twice, weight a float or [...], mask bool
        [...]; scalar, or [...] for ``"none"``.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import KLDivLoss
        >>> loss = KLDivLoss(temperature=4.0)(torch.zeros(2, 3, requires_grad=True), torch.eye(2, 3))
        >>> f"{loss.item():.4f}"
        '0.1166'
    """

    def __init__(
        self,
        temperature: float | Tensor = 1.0,
        *,
        divergence: Divergence = "forward",
        beta: float = 0.5,
        scale_by_t2: bool = True,
        reduction: Reduction = "batchmean",
        dim: int = -1,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__()
        checked_temperature(temperature)
        checks.choice("divergence", divergence, DIVERGENCES[:3])
        checks.open_unit("beta", beta)
        checks.choice("reduction", reduction, CHOICES)
        self.temperature, self.divergence, self.beta = temperature, divergence, beta
        self.scale_by_t2, self.reduction, self.dim = scale_by_t2, reduction, dim
        self.inplace_backward = inplace_backward

    def forward(
        self, student: Tensor, teacher: Tensor, weight: float | Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        return kl_div(
            student,
            teacher,
            self.temperature,
            divergence=self.divergence,
            beta=self.beta,
            weight=weight,
            mask=mask,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
            dim=self.dim,
            inplace_backward=self.inplace_backward,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, divergence={self.divergence!r}, reduction={self.reduction!r}"


class DistillationLoss(nn.Module):
    """Module of :func:`amkd_fast.distillation_loss`: hard-label cross-entropy and divergence in one pass.

    The defaults are that function's, T = 4, CE 0.1, divergence 0.9 with T²; those of :class:`amkd_fast.AMKDLoss` and
    :class:`amkd_fast.methods.KD` are others.

    Args:
        temperature: T > 0 of the divergence; a parameter [] of it learns.
        ce_weight: Weight of the cross-entropy.
        kl_weight: Weight of the divergence.
        divergence: ``"forward"``, ``"reverse"`` or ``"js"``.
        scale_by_t2: Multiply the divergence by T².
        ignore_index: The label that means «no label».
        ignored_rows: ``"keep"`` or ``"drop"`` the divergence of rows with that label.
        dim: The dimension that holds the classes.
        inplace_backward: Write the gradient over the student's logits, as in :func:`amkd_fast.kl_div`.

    Shape:
        ``forward(student, teacher, labels=None, mask=None)``: logits [..., K] twice, labels [...] and mask bool [...];
        returns ``DistillationTerms(total, ce, kl)``, scalars, of which ``total`` has the graph.

    Example:
        >>> import torch
        >>> from amkd_fast.losses import DistillationLoss
        >>> criterion = DistillationLoss(temperature=4.0, ce_weight=0.5, kl_weight=0.5)
        >>> loss = criterion(torch.zeros(2, 10, requires_grad=True), torch.zeros(2, 10), torch.tensor([1, 2]))
        >>> loss.total.backward()
        >>> f"{loss.total.item():.4f}"
        '1.1513'
    """

    def __init__(
        self,
        temperature: float | Tensor = 4.0,
        *,
        ce_weight: float = 0.1,
        kl_weight: float = 0.9,
        divergence: Divergence = "forward",
        scale_by_t2: bool = True,
        ignore_index: int = -100,
        ignored_rows: IgnoredRows = "keep",
        dim: int = -1,
        inplace_backward: bool = False,
    ) -> None:
        super().__init__()
        checked_temperature(temperature)
        checks.choice("divergence", divergence, DIVERGENCES[:3])
        checks.choice("ignored_rows", ignored_rows, IGNORED_ROWS)
        self.temperature, self.divergence = temperature, divergence
        self.ce_weight, self.kl_weight = checks.finite("ce_weight", ce_weight), checks.finite("kl_weight", kl_weight)
        self.scale_by_t2, self.ignore_index = scale_by_t2, ignore_index
        self.ignored_rows, self.dim, self.inplace_backward = ignored_rows, dim, inplace_backward

    def forward(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None = None, mask: Tensor | None = None
    ) -> DistillationTerms:
        return distillation_loss(
            student,
            teacher,
            labels,
            temperature=self.temperature,
            ce_weight=self.ce_weight,
            kl_weight=self.kl_weight,
            divergence=self.divergence,
            mask=mask,
            ignored_rows=self.ignored_rows,
            scale_by_t2=self.scale_by_t2,
            ignore_index=self.ignore_index,
            dim=self.dim,
            inplace_backward=self.inplace_backward,
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, ce_weight={self.ce_weight}, kl_weight={self.kl_weight}"


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
        reduction: Reduction = "batchmean",
        dim: int = -1,
    ) -> None:
        super().__init__()
        checked_temperature(temperature)
        checks.choice("reduction", reduction, CHOICES)
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
        reduction: Reduction = "mean",
        dim: int = -1,
    ) -> None:
        super().__init__()
        checked_temperature(temperature)
        checks.finite("target_weight", target_weight)
        checks.finite("other_weight", other_weight)
        checks.choice("reduction", reduction, CHOICES)
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
