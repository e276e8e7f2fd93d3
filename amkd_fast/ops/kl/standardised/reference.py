"""Standardised KL divergence in plain PyTorch: the definition that its kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast.ops.kl.reference import every_row, reduced, row_divergence, statistics_dtype, to_save, without


def loss(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    temperature: float | Tensor,
    factor: float | Tensor,
    reduction: int,
) -> Tensor:
    """The loss of the operators' arguments."""
    weight = to_save(weight)
    hidden = None if weight is None else weight == 0
    if not isinstance(factor, Tensor) and factor == 0:
        hidden = every_row(student)
    pair = (without(hidden, z) for z in (student, teacher))
    rows = without(hidden, factor * row_divergence_of_standardised(*pair, temperature))
    return reduced(rows if weight is None else rows * weight, reduction)


def row_divergence_of_standardised(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """KL of every row, [B, K] and [B, K] → [B], without T² and weights."""
    return row_divergence(standardised(student), standardised(teacher), temperature, "forward", 0.5)


def standardised(logits: Tensor) -> Tensor:
    """Rows with mean 0 and sample standard deviation 1 over the classes that are not −inf; constant rows become 0."""
    z = logits.to(statistics_dtype(logits.dtype))
    kept = z != -torch.inf
    # From the maximum on, the differences of a constant row are exactly 0, whatever its mean would round to.
    z = (z - z.detach().amax(-1, keepdim=True)).masked_fill(~kept, 0.0)
    count = kept.sum(-1, keepdim=True)
    z = (z - z.sum(-1, keepdim=True) / count).masked_fill(~kept, 0.0)
    variance = z.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
    constant = variance == 0
    z = (z / variance.masked_fill(constant, 1.0).sqrt()).masked_fill(constant, 0.0)
    # Two logits become ±1/√2, whatever they are: no gradient, of which rounding would leave a little.
    z = torch.where(count > 2, z, z.detach() + 0.0 * z)
    return z.masked_fill(~kept, -torch.inf)
