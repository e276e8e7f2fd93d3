"""Autograd around the operators of the standardised KL divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.kl.function import REDUCTIONS, reduced
from amkd_fast.ops.kl.reference import every_row, statistics_dtype, to_save, without
from amkd_fast.ops.kl.standardised import reference

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


class FusedStandardised(torch.autograd.Function):
    """The loss of logits [B, K] from the operators of one backend; ``optional`` is (weight,) or nothing.

    The backward pass recomputes the probabilities from the statistics. Gradients other than the student's, and the
    differentiable gradient that a double backward needs, come from the reference.
    """

    @staticmethod
    def forward(ctx, operators, scalars, student, teacher, *optional):
        loss, stats = operators[0](student, teacher, *(optional or (None,)), *scalars)
        ctx.call = (operators[1], scalars, save(ctx, (stats,), student, teacher, *optional))
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        needed = ctx.needs_input_grad[2:]
        grads = [None] * len(needed)
        backward_op, scalars, unsaved = ctx.call
        stats, student, teacher, *optional = saved(ctx, unsaved)
        differentiable = backends.differentiates()
        if needed[0] and not differentiable:
            grads[0] = backward_op(grad_loss, student, teacher, *(optional or (None,)), stats, *scalars)
            needed = (False, *needed[1:])
        if True in needed:

            def loss_of(student, teacher, weight=None):
                return compute(student, teacher, weight, *scalars)

            others = reference_grads(loss_of, grad_loss, (student, teacher, *optional), needed, differentiable)
            grads = [own if own is not None else other for own, other in zip(grads, others, strict=True)]
        return (None, None, *grads)


def fake_forward(student, teacher, weight, temperature, factor, reduction):
    """Shapes and dtypes of the forward operator's outputs."""
    rows, dtype = student.shape[0], statistics_dtype(student.dtype)
    loss = student.new_empty((rows,) if REDUCTIONS[reduction] == "none" else (), dtype=dtype)
    return loss, student.new_empty(FIELDS * rows, dtype=dtype)


def fake_backward(grad_loss, student, *_):
    """Shape and dtype of the backward operator's output."""
    return student.new_empty(student.shape)
