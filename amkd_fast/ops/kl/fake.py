"""Shapes of the KL operators' outputs, for torch.compile; the same for every backend."""

from __future__ import annotations

from amkd_fast.ops.kl.function import FIELDS, REDUCTIONS, TAIL
from amkd_fast.ops.kl.reference import statistics_dtype


def fake_forward(student, teacher, weight, labels, ce_weight, *scalars):
    """Shapes and dtypes of the forward operator's outputs."""
    rows, per_row = student.shape[0], REDUCTIONS[scalars[-1]] == "none"
    dtype = statistics_dtype(student.dtype)
    loss = student.new_empty((rows,) if per_row else (), dtype=dtype)
    return loss, student.new_empty(FIELDS * rows + TAIL, dtype=dtype)


def fake_backward(grad_loss, student, *_):
    """Shape and dtype of the backward operator's output."""
    return student.new_empty(student.shape)
