"""Autograd around the segments operators."""

from __future__ import annotations

import torch

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.segments import reference

AHEAD = 3  # arguments before the tensors


class FusedSegments(torch.autograd.Function):
    """The loss of ``tensors``, which are the weights [S] or None, S students and S teachers.

    With ``ahead`` the gradients are made in the forward pass already, while student and teacher are in registers: that
    saves reading both again. They are given away whole to the first backward pass, so that nobody shares them with the
    graph and autograd may keep them or change them without a copy; later passes make new ones. Gradients of teachers
    and weights follow from those and from the means; a double backward comes from the reference.
    """

    @staticmethod
    def forward(ctx, operators, factors, ahead, *tensors):
        count = len(factors)
        loss, means, grads = operators.forward(tensors[1 : count + 1], tensors[count + 1 :], tensors[0], factors, ahead)
        ctx.unsaved = save(ctx, (means,), *tensors)
        ctx.operators, ctx.factors = operators, factors
        if ahead:
            ctx.grads = grads
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        needed, count = ctx.needs_input_grad[AHEAD:], len(ctx.factors)
        if backends.differentiates():
            return (None,) * AHEAD + _reference_grads(grad_loss, saved(ctx, ctx.unsaved)[1:], needed, ctx.factors)
        grads = None if torch.compiler.is_compiling() else vars(ctx).pop("grads", None)  # at once: threads may race
        if grads is not None:
            ctx.operators.scale(grads, grad_loss)
        elif True in needed[1:]:
            _, weights, *segments = saved(ctx, ctx.unsaved)
            grads = ctx.operators.backward(grad_loss, segments[:count], segments[count:], weights, ctx.factors)
        of_weights = grad_loss * saved(ctx, ctx.unsaved)[0] if needed[0] else None
        if grads is None:
            return (None,) * AHEAD + (of_weights,) + (None,) * (2 * count)
        students, teachers = needed[1 : count + 1], needed[count + 1 :]
        of_teachers = [-grad if need else None for need, grad in zip(teachers, grads, strict=True)]
        of_students = [grad if need else None for need, grad in zip(students, grads, strict=True)]
        return (*(None,) * AHEAD, of_weights, *of_students, *of_teachers)


def _reference_grads(grad_loss, tensors, needed, factors):
    """Differentiable ones."""
    count = len(factors)

    def loss_of(weights, *segments):
        weights = grad_loss.new_tensor(factors) if weights is None else weights
        return reference.segment_mse(segments[:count], segments[count:], weights)

    return tuple(reference_grads(loss_of, grad_loss, tensors, needed))
