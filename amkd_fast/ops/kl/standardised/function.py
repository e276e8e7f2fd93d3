"""Autograd around the operators of the standardised KL divergence."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast.ops.kl.function import reference_grads
from amkd_fast.ops.kl.reference import statistics_dtype
from amkd_fast.ops.kl.standardised import reference

# Statistics that the forward operator leaves for the backward one, field by field ([FIELDS, B], flat).
# csrc/kl/standardised.h has the same list.
FIELDS = 8  # student: max, log-sum, centre, 1/s, pull; teacher: max, log-sum, 1/s


def compute(
    student: Tensor, teacher: Tensor, weight: Tensor | None, temperature: float, factor: float, per_row: bool
) -> Tensor:
    """The loss by the reference."""
    rows = factor * reference.row_divergence_of_standardised(student, teacher, temperature)
    if weight is not None:
        rows = rows * weight
    return rows if per_row else rows.sum()


class FusedStandardised(torch.autograd.Function):
    """The loss of logits [B, K] from the operators of one backend; ``optional`` is (weight,) or nothing.

    The backward pass recomputes the probabilities from the statistics. Gradients other than the student's, and the
    differentiable gradient that a double backward needs, come from the reference.
    """

    @staticmethod
    def forward(ctx, operators, scalars, student, teacher, *optional):
        loss, stats = operators[0](student, teacher, *(optional or (None,)), *scalars)
        ctx.save_for_backward(stats, student, teacher, *optional)
        ctx.backward_op, ctx.scalars = operators[1], scalars
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        needed = ctx.needs_input_grad[2:]
        grads = [None] * len(needed)
        stats, student, teacher, *optional = ctx.saved_tensors
        differentiable = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if needed[0] and not differentiable:
            grads[0] = ctx.backward_op(grad_loss, student, teacher, *(optional or (None,)), stats, *ctx.scalars)
            needed = (False, *needed[1:])
        if True in needed:

            def loss_of(student, teacher, weight=None):
                return compute(student, teacher, weight, *ctx.scalars)

            for i, grad in reference_grads(loss_of, grad_loss, (student, teacher, *optional), needed, differentiable):
                grads[i] = grad
        return (None, None, *grads)


def fake_forward(student, teacher, weight, temperature, factor, per_row):
    """Shapes and dtypes of the forward operator's outputs."""
    rows, dtype = student.shape[0], statistics_dtype(student.dtype)
    loss = student.new_empty((rows,) if per_row else (), dtype=dtype)
    return loss, student.new_empty(FIELDS * rows, dtype=dtype)


def fake_backward(grad_loss, student, *_):
    """Shape and dtype of the backward operator's output."""
    return student.new_empty(student.shape)
