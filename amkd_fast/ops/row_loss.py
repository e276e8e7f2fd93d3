"""Autograd around the operators of one loss of rows: the node in C++ where it can be had, else a Function in Python.

A forward operator takes tensors and numbers and returns (loss, statistics); the backward operator takes the gradient of
the loss, the same tensors, the statistics and the same numbers, and returns the gradients of some of the tensors. All
other gradients, and those that are themselves differentiated, come from the reference: they are rare, and one
definition of them is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads, save, saved

_node = backends.autograd_node()


class RowLoss(NamedTuple):
    """What the operators of a loss have in common, whichever backend they belong to."""

    tensors: int  # how many they take
    own: tuple[int, ...]  # those whose gradients the backward operator makes, in its order
    reference: Callable[..., Tensor]  # reference(*tensors, *numbers): the loss, with a graph


class Operators(NamedTuple):
    """Those of one backend."""

    loss: RowLoss
    forward: Callable
    backward: Callable
    node: int | None  # its number in C++


def operators(loss: RowLoss, forward: Callable, backward: Callable) -> Operators:
    """Put the two operators of a backend together."""
    names = [op.name().removesuffix(".default") for op in (forward, backward)]
    node = None if _node is None else _node.add(*names, loss.own, ReferenceGradients(loss))
    return Operators(loss, forward, backward, node)


def row_loss(operators: Operators, numbers: tuple, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    """(loss, statistics) of a call, the loss with its graph; absent tensors at the end may be left out."""
    if _node is not None and operators.node is not None and not is_compiling():
        found = _node.row_loss(operators.node, numbers, *tensors)
        if found is not None:
            return found
    while tensors[-1] is None:  # each argument of a Function has its price
        tensors = tensors[:-1]
    return FusedRowLoss.apply(operators, numbers, *tensors)


class ReferenceGradients:
    """The gradients of a loss by its reference, of what the node in C++ asks for."""

    def __init__(self, loss: RowLoss) -> None:
        self._loss = loss

    def __call__(
        self, grad_loss: Tensor, tensors: tuple[Tensor | None, ...], needed: tuple[bool, ...], numbers: tuple
    ) -> list[Tensor | None]:
        def loss_of(*given):
            return self._loss.reference(*given, *numbers)

        return reference_grads(loss_of, grad_loss, tensors, needed, backends.differentiates())


class FusedRowLoss(torch.autograd.Function):
    """What the node in C++ does: under ``torch.compile``, in a mode, for a subclass, or where there is no such node."""

    @staticmethod
    def forward(ctx, *call):
        operators, numbers, *tensors = call  # torch.compile leaves ctx out where parameters are as many as arguments
        rest = (None,) * (operators.loss.tensors - len(tensors))
        loss, stats = operators.forward(*tensors, *rest, *numbers)
        ctx.call = (operators, numbers, rest, save(ctx, (stats,), *tensors))
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)  # else every backward pass would fill a gradient of zeros for the statistics
        return loss, stats

    @staticmethod
    def backward(ctx, grad_loss, _):
        needed = list(ctx.needs_input_grad[2:])
        grads = [None] * len(needed)
        if grad_loss is not None:
            operators, numbers, rest, unsaved = ctx.call
            stats, *tensors = saved(ctx, unsaved)
            own = operators.loss.own
            if any(needed[i] for i in own) and not backends.differentiates():
                found = operators.backward(grad_loss, *tensors, *rest, stats, *numbers)
                for i, grad in zip(own, (found,) if len(own) == 1 else found, strict=True):
                    grads[i], needed[i] = grad if needed[i] else None, False
            if True in needed:
                by_reference = ReferenceGradients(operators.loss)
                others = by_reference(grad_loss, (*tensors, *rest), (*needed, *(False for _ in rest)), numbers)
                grads = [own if own is not None else other for own, other in zip(grads, others, strict=False)]
        return (None, None, *grads)
