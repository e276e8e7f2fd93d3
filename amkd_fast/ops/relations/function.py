"""Autograd around the relations operator, which finds loss and gradient in one pass over the pairs or triples.

The loss is one number, so what the backward pass brings is only a factor, and nothing of the pairs need be kept.
"""

from __future__ import annotations

import torch

from amkd_fast.ops.relations import reference
from amkd_fast.ops.saved import save, saved


class FusedRelations(torch.autograd.Function):
    """The weighted loss of two sets of rows from the operator of one backend."""

    @staticmethod
    def forward(ctx, call, student, teacher):
        operator, distance_weight, angle_weight, with_gradient = call
        loss, grad = operator(student, teacher, distance_weight, angle_weight, with_gradient)
        save(ctx, student, teacher, grad)
        ctx.call = call
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        student, teacher, grad = saved(ctx)
        operator, distance_weight, angle_weight, _ = ctx.call
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return (None, *_differentiable(ctx, grad_loss, student, teacher))
        grads = [None, None]
        if ctx.needs_input_grad[1]:
            grads[0] = (grad_loss * grad).to(student.dtype)
        if ctx.needs_input_grad[2]:  # the loss is the same with its sides exchanged
            _, grad = operator(teacher, student, distance_weight, angle_weight, True)
            grads[1] = (grad_loss * grad).to(teacher.dtype)
        return None, *grads


def _differentiable(ctx, grad_loss, student, teacher):
    """For a double backward, which is rare: through the reference."""
    grads = [None, None]
    with torch.enable_grad():
        loss = reference.loss(student, teacher, *ctx.call[1:3])
        wanted = [i for i in range(2) if ctx.needs_input_grad[1 + i]]
        found = torch.autograd.grad(loss, [(student, teacher)[i] for i in wanted], grad_loss, create_graph=True)
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    return grads
