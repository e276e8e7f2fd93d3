"""The loss of the operators of the standardised KL divergence, and the shapes of their outputs."""

from __future__ import annotations

from torch import Tensor

from amkd_fast.ops.kl.function import REDUCTIONS, reduced
from amkd_fast.ops.kl.reference import every_row, statistics_dtype, to_save, without
from amkd_fast.ops.kl.standardised import reference
from amkd_fast.ops.row_loss import RowLoss, by_reference

# Statistics that the forward operator leaves for the backward one, field by field ([FIELDS, B], flat).
# csrc/kl/standardised.h has the same list.
FIELDS = 8  # student: max, log-sum, centre, 1/s, pull; teacher: max, log-sum, 1/s


def compute(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    temperature: float | Tensor,
    factor: float | Tensor,
    reduction: int,
) -> Tensor:
    """The loss by the reference."""
    weight = to_save(weight)
    hidden = None if weight is None else weight == 0
    if not isinstance(factor, Tensor) and factor == 0:
        hidden = every_row(student)
    pair = (without(hidden, z) for z in (student, teacher))
    rows = without(hidden, factor * reference.row_divergence_of_standardised(*pair, temperature))
    return reduced(rows if weight is None else rows * weight, reduction)


# The backward operator computes the probabilities again, from the statistics.
ROW_LOSS = RowLoss((0,), by_reference(compute), tensors=3, numbers=3)


def fake_forward(student, teacher, weight, temperature, factor, reduction):
    """Shapes and dtypes of the forward operator's outputs."""
    rows, dtype = student.shape[0], statistics_dtype(student.dtype)
    loss = student.new_empty((rows,) if REDUCTIONS[reduction] == "none" else (), dtype=dtype)
    return loss, student.new_empty(FIELDS * rows, dtype=dtype)


def fake_backward(grad_loss, student, *_):
    """Shape and dtype of the backward operator's output."""
    return student.new_empty(student.shape)
