"""The loss of the operators of decoupled knowledge distillation, and the shapes of their outputs."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from amkd_fast.ops.kl.decoupled import reference
from amkd_fast.ops.kl.function import REDUCTIONS, reduced
from amkd_fast.ops.kl.reference import every_row, statistics_dtype, to_save, without
from amkd_fast.ops.row_loss import RowLoss, by_reference

# Statistics that the forward operator leaves for the backward one, field by field ([FIELDS, B], flat): of the classes
# other than the target the student's max and log-sum and the teacher's, then the slope of the target's divergence in
# the student's log-odds, and the row's value. csrc/kl/decoupled.h has the same list.
FIELDS = 6


class Scalars(NamedTuple):
    """The numbers of one call, in the order in which the operators take them."""

    temperature: float
    target_factor: float  # weight of the target's divergence in a row, with T²
    other_factor: float  # of the others'
    factor: float  # weight of the rows
    reduction: int


def compute(student: Tensor, teacher: Tensor, labels: Tensor, weight: Tensor | None, s: Scalars) -> Tensor:
    """The loss by the reference."""
    weight = to_save(weight)
    hidden = every_row(student) if s.factor == 0 else None if weight is None else weight == 0
    pair = (without(hidden, z) for z in (student, teacher))
    target, others = reference.row_divergences(*pair, labels, s.temperature)
    rows = without(hidden, s.factor * (s.target_factor * target + s.other_factor * others))
    return reduced(rows if weight is None else rows * weight, s.reduction)


def _reference(student, teacher, labels, weight, *numbers):
    return compute(student, teacher, labels, weight, Scalars(*numbers))


# The backward operator computes the probabilities again, from the statistics.
ROW_LOSS = RowLoss((0,), by_reference(_reference), tensors=4, numbers=5)


def fake_forward(student, teacher, labels, weight, *scalars):
    """Shapes and dtypes of the forward operator's outputs."""
    rows, per_row = student.shape[0], REDUCTIONS[scalars[-1]] == "none"
    dtype = statistics_dtype(student.dtype)
    return student.new_empty((rows,) if per_row else (), dtype=dtype), student.new_empty(FIELDS * rows, dtype=dtype)


def fake_backward(grad_loss, student, *_):
    """Shape and dtype of the backward operator's output."""
    return student.new_empty(student.shape)
