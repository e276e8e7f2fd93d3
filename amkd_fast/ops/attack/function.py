"""Autograd around the step operator."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast.ops.attack import operators as attack_operators
from amkd_fast.ops.attack import steps
from amkd_fast.ops.attack.operators import Operators, Step


class FusedStep(torch.autograd.Function):
    """A step by the operator of one backend. Its derivative is the specification's, which is computed once more.

    Attacks never ask for it, and one definition of what is differentiable where is enough.
    """

    @staticmethod
    def forward(ctx, x: Tensor, grad: Tensor, operators: Operators, call: Step) -> Tensor:
        ctx.save_for_backward(x, grad)
        velocity = call.velocity
        ctx.call = call if velocity is None else call._replace(velocity=velocity.clone())  # as it was
        return attack_operators.step(operators, x, grad, None, call)

    @staticmethod
    def backward(ctx, grad_moved: Tensor):
        inputs, needed = ctx.saved_tensors, ctx.needs_input_grad[:2]
        differentiable = torch.is_grad_enabled()
        with torch.enable_grad():
            if not differentiable:
                inputs = [t.detach().requires_grad_(need) for t, need in zip(inputs, needed, strict=True)]
            moved, _ = steps.attack_step(*inputs, **ctx.call._asdict())
            wanted = [i for i, need in enumerate(needed) if need]
            found = torch.autograd.grad(moved, [inputs[i] for i in wanted], grad_moved, create_graph=differentiable)
        grads = [None, None]
        for i, value in zip(wanted, found, strict=True):
            grads[i] = value
        return (*grads, None, None)
