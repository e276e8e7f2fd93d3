"""Cosine-confidence distillation in plain PyTorch: the definition that its kernels are tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast.ops.kl.reference import row_divergence, statistics_dtype


def loss(
    student: Tensor,
    teacher: Tensor,
    augmented_student: Tensor,
    augmented_teacher: Tensor,
    temperature: float,
    row_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, and the mean of the clean rows, of the augmented ones and the confidence detached."""
    clean, augmented, confidence = row_terms(student, teacher, augmented_student, augmented_teacher, temperature)
    factor = row_scale / max(clean.shape[0], 1)
    # In fp64, as the operators add their rows up.
    means = [factor * rows.sum(dtype=torch.float64) for rows in (clean, confidence * augmented)]
    total, *means = (mean.to(clean.dtype) for mean in (0.5 * (means[0] + means[1]), *means))
    return total, means[0].detach(), means[1].detach(), confidence.detach()


def row_terms(
    student: Tensor, teacher: Tensor, augmented_student: Tensor, augmented_teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """KL of the clean rows, of the augmented ones, and the confidence of the latter: four [B, K] → three [B]."""
    clean = row_divergence(student, teacher, temperature, "forward", 0.5)
    augmented = row_divergence(augmented_student, augmented_teacher, temperature, "forward", 0.5)
    return clean, augmented, 1.0 + cosine(teacher, augmented_teacher)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row with its partner; classes of −inf count as 0, and a row without length has cosine 0."""
    a, b = (z.to(statistics_dtype(z.dtype)).masked_fill(z == -torch.inf, 0.0) for z in (a, b))
    squares = [z.square().sum(-1) for z in (a, b)]
    short = (squares[0] == 0) | (squares[1] == 0)
    lengths = [square.masked_fill(short, 1.0).sqrt() for square in squares]
    return ((a * b).sum(-1) / lengths[0] / lengths[1]).masked_fill(short, 0.0)
