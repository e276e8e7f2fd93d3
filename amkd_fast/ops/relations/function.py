"""Autograd around the relations operator, which finds loss and gradient in one pass over the pairs or triples.

The loss is one number, so what the backward pass brings is only a factor, and nothing of the pairs need be kept.
"""

from __future__ import annotations

from functools import partial

import torch

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.relations import reference


class FusedRelations(torch.autograd.Function):
    """The weighted loss of two sets of rows from the operator of one backend."""

    @staticmethod
    def forward(ctx, call, student, teacher):
        operator, distance_weight, angle_weight, with_gradient = call
        loss, grad = operator(student, teacher, distance_weight, angle_weight, with_gradient)
        ctx.call = (*call, save(ctx, (grad,), student, teacher))
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        operator, distance_weight, angle_weight, _, unsaved = ctx.call
        grad, student, teacher = saved(ctx, unsaved)
        if backends.differentiates():
            loss_of = partial(reference.loss, distance_weight=distance_weight, angle_weight=angle_weight)
            return (None, *reference_grads(loss_of, grad_loss, (student, teacher), ctx.needs_input_grad[1:]))
        grads = [None, None]
        if ctx.needs_input_grad[1]:
            grads[0] = (grad_loss * grad).to(student.dtype)
        if ctx.needs_input_grad[2]:  # the loss is the same with its sides exchanged
            _, grad = operator(teacher, student, distance_weight, angle_weight, True)
            grads[1] = (grad_loss * grad).to(teacher.dtype)
        return None, *grads
