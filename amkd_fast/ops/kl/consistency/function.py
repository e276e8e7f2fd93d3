"""Autograd around the operators of cosine-confidence distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.kl.consistency import reference
from amkd_fast.ops.kl.reference import statistics_dtype

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


class FusedConsistency(torch.autograd.Function):
    """(total, statistics) of four logits [B, K] from the operators of one backend.

    The backward pass recomputes the probabilities of both views from the statistics, in one launch. The gradients of
    the teachers, and the differentiable gradient that a double backward needs, come from the reference.
    """

    @staticmethod
    def forward(ctx, operators, temperature, row_scale, *tensors):
        total, stats = operators[0](*tensors, temperature, row_scale)
        ctx.call = (operators[1], (temperature, row_scale), save(ctx, (stats,), *tensors))
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return total, stats

    @staticmethod
    def backward(ctx, grad_total, _):
        needed = list(ctx.needs_input_grad[3:])
        grads = [None] * 4
        if grad_total is not None:
            backward_op, scalars, unsaved = ctx.call
            stats, *tensors = saved(ctx, unsaved)
            differentiable = backends.differentiates()
            if (needed[0] or needed[2]) and not differentiable:
                both = backward_op(grad_total, *tensors, stats, *scalars)
                for i, grad in zip((0, 2), both, strict=True):
                    grads[i], needed[i] = grad if needed[i] else None, False
            if True in needed:
                others = reference_grads(
                    lambda *inputs: compute(*inputs, *scalars)[0], grad_total, tensors, needed, differentiable
                )
                grads = [own if own is not None else other for own, other in zip(grads, others, strict=True)]
        return (None, None, None, *grads)


def fake_forward(student, teacher, augmented_student, augmented_teacher, temperature, row_scale):
    """Shapes and dtypes of the forward operator's outputs."""
    dtype = statistics_dtype(student.dtype)
    return student.new_empty((), dtype=dtype), student.new_empty(FIELDS * student.shape[0] + TAIL, dtype=dtype)


def fake_backward(grad_total, student, *_):
    """Shapes and dtypes of the backward operator's outputs."""
    return student.new_empty(student.shape), student.new_empty(student.shape)
