"""The loss of the operators of cosine-confidence distillation, and the shapes of their outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast.ops.kl.consistency import reference
from amkd_fast.ops.kl.reference import statistics_dtype
from amkd_fast.ops.row_loss import RowLoss, by_reference

# Statistics that the forward operator leaves for the backward one, field by field ([FIELDS, B], flat), then the TAIL:
# the means of both views. csrc/kl/consistency.h has the same list.
FIELDS = 9  # clean: student max, student log-sum, teacher max, teacher log-sum; the same augmented; confidence
TAIL = 2


def compute(
    student: Tensor,
    teacher: Tensor,
    augmented_student: Tensor,
    augmented_teacher: Tensor,
    temperature: float,
    row_scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By the reference: total, and the mean of the clean rows, of the augmented ones and the confidence detached."""
    clean, augmented, confidence = reference.row_terms(
        student, teacher, augmented_student, augmented_teacher, temperature
    )
    factor = row_scale / max(clean.shape[0], 1)
    # In fp64, as the operators add their rows up.
    means = [factor * rows.sum(dtype=torch.float64) for rows in (clean, confidence * augmented)]
    total, *means = (mean.to(clean.dtype) for mean in (0.5 * (means[0] + means[1]), *means))
    return total, means[0].detach(), means[1].detach(), confidence.detach()


def parts(stats: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the clean rows, that of the augmented ones, and the confidence, out of the statistics."""
    return stats.select(0, -2), stats.select(0, -1), stats.narrow(0, (FIELDS - 1) * rows, rows)


def _reference(*call):
    return compute(*call)[0]


# The backward operator computes the probabilities of both views again, from the statistics, in one launch.
ROW_LOSS = RowLoss((0, 2), by_reference(_reference), tensors=4, numbers=2)


def fake_forward(student, teacher, augmented_student, augmented_teacher, temperature, row_scale):
    """Shapes and dtypes of the forward operator's outputs."""
    dtype = statistics_dtype(student.dtype)
    return student.new_empty((), dtype=dtype), student.new_empty(FIELDS * student.shape[0] + TAIL, dtype=dtype)


def fake_backward(grad_total, student, *_):
    """Shapes and dtypes of the backward operator's outputs."""
    return student.new_empty(student.shape), student.new_empty(student.shape)
