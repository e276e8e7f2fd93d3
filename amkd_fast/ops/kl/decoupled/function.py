"""Autograd around the operators of decoupled knowledge distillation, and the shapes of their outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.kl.decoupled import reference
from amkd_fast.ops.kl.function import REDUCTIONS, reduced
from amkd_fast.ops.kl.reference import every_row, statistics_dtype, to_save, without

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


class FusedDecoupled(torch.autograd.Function):
    """The loss of logits [B, K] and labels [B] from the operators of one backend; ``optional`` is (weight,) or nothing.

    The backward pass recomputes the probabilities from the statistics. As in :class:`amkd_fast.ops.kl.function.FusedKL`
    gradients other than the student's, and the differentiable gradient of a double backward, come from the reference.
    """

    @staticmethod
    def forward(ctx, operators, scalars, student, teacher, labels, *optional):
        loss, stats = operators[0](student, teacher, labels, *(optional or (None,)), *scalars)
        ctx.call = (operators[1], scalars, save(ctx, (stats,), student, teacher, labels, *optional))
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        needed = ctx.needs_input_grad[2:]
        grads = [None] * len(needed)
        backward_op, scalars, unsaved = ctx.call
        stats, student, teacher, labels, *optional = saved(ctx, unsaved)
        differentiable = backends.differentiates()
        if needed[0] and not differentiable:
            tensors = (student, teacher, labels, *(optional or (None,)), stats)
            grads[0] = backward_op(grad_loss, *tensors, *scalars)
            needed = (False, *needed[1:])
        if True in needed:

            def loss_of(student, teacher, labels, weight=None):
                return compute(student, teacher, labels, weight, Scalars(*scalars))

            others = reference_grads(loss_of, grad_loss, (student, teacher, labels, *optional), needed, differentiable)
            grads = [own if own is not None else other for own, other in zip(grads, others, strict=True)]
        return (None, None, *grads)


def fake_forward(student, teacher, labels, weight, *scalars):
    """Shapes and dtypes of the forward operator's outputs."""
    rows, per_row = student.shape[0], REDUCTIONS[scalars[-1]] == "none"
    dtype = statistics_dtype(student.dtype)
    return student.new_empty((rows,) if per_row else (), dtype=dtype), student.new_empty(FIELDS * rows, dtype=dtype)


def fake_backward(grad_loss, student, *_):
    """Shape and dtype of the backward operator's output."""
    return student.new_empty(student.shape)
