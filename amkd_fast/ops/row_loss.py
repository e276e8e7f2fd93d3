"""Autograd around the operators of one loss of rows: the node in C++ where it can be had, else a Function in Python.

A forward operator takes tensors and numbers and returns (loss, statistics); the backward operator takes the gradient of
the loss, the same tensors, the statistics and the same numbers, and returns the gradients of some of the tensors. All
other gradients, and those that are themselves differentiated, come from elsewhere, mostly the reference: they are rare,
and one definition of them is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.compiler import is_compiling

from amkd_fast import backends
from amkd_fast.ops import schemas
from amkd_fast.ops.autograd import reference_grads, save, saved

_node = backends.autograd_node()

# The positions are the last number, `reduction`, of a loss that one row after the other is put together of.
REDUCTIONS = ("sum", "mean", "none")  # the mean is over the rows


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64, else fp32: the dtype of row statistics and losses."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class RowLoss(NamedTuple):
    """What the operators of a loss have in common, whichever backend they belong to."""

    own: tuple[int, ...]  # tensors whose gradients the backward operator makes, in its order
    others: Callable[..., list[Tensor | None]]  # of (grad_loss, tensors, stats, needed, numbers): all other gradients
    tensors: int  # how many the operators take
    numbers: int
    more_tensors: int = 0  # behind those: what only `others` sees
    more_numbers: str = ""  # likewise, each by the letter of float, int or bool
    asks_determinism: bool = False  # the backward operator has torch's flag as its last number


class Operators(NamedTuple):
    """Those of one backend."""

    loss: RowLoss
    forward: Callable
    backward: Callable
    node: int | None  # its number in C++


def operators(loss: RowLoss, forward: str, backward: str) -> dict[str, Operators]:
    """The two operators of these names, for every backend that has operators."""
    found: dict[str, Operators] = {}
    for suffix, those in (("", ("cpu", "cuda")), ("_triton", ("triton",))):
        names, node = [name + suffix for name in (forward, backward)], None
        if _node is not None:
            full = (f"amkd_fast::{name}" for name in names)
            node = _node.add(*full, loss.own, loss.others, loss.more_tensors, loss.more_numbers, loss.asks_determinism)
        forward_op, backward_op = (getattr(torch.ops.amkd_fast, name).default for name in names)
        found |= dict.fromkeys(those, Operators(loss, forward_op, backward_op, node))
    return found


def declare(name: str, loss: RowLoss, triton: str, fields: int = 0, tail: int = 0) -> dict[str, Operators]:
    """Declare ``NAME_forward`` and ``NAME_backward`` of a loss whose first tensor alone has a gradient of its own.

    Args:
        name: Of the schemas, without the two ends.
        loss: What they have in common.
        triton: The module with ``launch_forward`` and ``launch_backward``.
        fields: Statistics a row.
        tail: Statistics behind those.
    """

    def fake_forward(student: Tensor, *rest: int) -> tuple[Tensor, Tensor]:
        rows, dtype = student.shape[0], statistics_dtype(student.dtype)
        shape = (rows,) if REDUCTIONS[rest[-1]] == "none" else ()
        return student.new_empty(shape, dtype=dtype), student.new_empty(fields * rows + tail, dtype=dtype)

    def fake_backward(grad_loss: Tensor, student: Tensor, *_: object) -> Tensor:
        return student.new_empty(student.shape)

    for end, fake in (("forward", fake_forward), ("backward", fake_backward)):
        schemas.register(f"{name}_{end}", fake, f"{triton}:launch_{end}")
    return operators(loss, f"{name}_forward", f"{name}_backward")


def overwriting(name: str, fused: dict[str, Operators], triton: str) -> dict[str, Operators]:
    """``fused`` with ``NAME_overwrite`` as its backward operator: the first tensor's memory becomes its gradient."""
    schemas.register(f"{name}_overwrite", lambda *_: None, f"{triton}:launch_overwrite")

    def backward_of(overwrite: Callable) -> Callable:
        def backward(grad_loss: Tensor, student: Tensor, *rest: object) -> Tensor:
            overwrite(grad_loss, student, *rest)
            increment_version(student)  # whoever saved the logits is told
            return student.detach()

        return backward

    found = {}
    for backend, those in fused.items():
        operator = getattr(torch.ops.amkd_fast, f"{name}_overwrite" + ("_triton" if backend == "triton" else ""))
        found[backend] = those._replace(backward=backward_of(operator.default), node=None)
    return found


def row_loss(operators: Operators, numbers: tuple, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
    """(loss, statistics) of a call, the loss with its graph; absent tensors at the end may be left out."""
    if _node is not None and operators.node is not None and not is_compiling():
        found = _node.row_loss(operators.node, numbers, *tensors)
        if found is not None:
            return found
    while tensors[-1] is None:  # each argument of a Function has its price
        tensors = tensors[:-1]
    return FusedRowLoss.apply(operators, numbers, *tensors)


def ready(*logits: Tensor, labels: Tensor | None = None) -> str | None:
    """The device type of logits [B, K] and labels [B] that need no checks: these would cost more than a small kernel.

    None where the checks have to look, as they always may.
    """
    return None if _node is None or is_compiling() else _node.ready(labels, *logits)


def alike(images: Tensor, *others: Tensor | None) -> bool:
    """Whether images [B, …] and the others that are there need no checks, as they have one dtype, shape and device.

    False where the checks have to look, as they always may.
    """
    return _node is not None and not is_compiling() and _node.alike(images, *others)


def tail(stats: Tensor, count: int) -> tuple[Tensor, ...]:
    """The last ``count`` statistics, each alone."""
    if _node is None or is_compiling() or type(stats) is not Tensor:
        return stats[-count:].unbind()
    return _node.tail(stats, count)


def by_reference(loss: Callable[..., Tensor]) -> Callable[..., list[Tensor | None]]:
    """The gradients of ``loss(*tensors, *numbers)``, which has a graph."""

    def others(
        grad_loss: Tensor, tensors: tuple[Tensor | None, ...], _: Tensor, needed: tuple[bool, ...], numbers: tuple
    ) -> list[Tensor | None]:
        def loss_of(*given):
            return loss(*given, *numbers)

        return reference_grads(loss_of, grad_loss, tensors, needed, backends.differentiates())

    return others


class FusedRowLoss(torch.autograd.Function):
    """What the node in C++ does: under ``torch.compile``, in a mode, for a subclass, or where there is no such node."""

    @staticmethod
    def forward(ctx, *call):
        operators, numbers, *tensors = call  # torch.compile leaves ctx out where parameters are as many as arguments
        kind = operators.loss
        rest = (None,) * (kind.tensors + kind.more_tensors - len(tensors))
        loss, stats = operators.forward(*(*tensors, *rest)[: kind.tensors], *numbers[: kind.numbers])
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
            stats, *given = saved(ctx, unsaved)
            kind, tensors = operators.loss, (*given, *rest)
            needed += (False,) * len(rest)
            own = [] if backends.differentiates() else [i for i in kind.own if needed[i]]
            needed = [need and i not in own for i, need in enumerate(needed)]
            if True in needed:  # first, as the operator may write over what they are made of
                grads = kind.others(grad_loss, tensors, stats, tuple(needed), numbers)[: len(grads)]
            if own:
                flag = (torch.are_deterministic_algorithms_enabled(),) if kind.asks_determinism else ()
                call = (*tensors[: kind.tensors], stats, *numbers[: kind.numbers], *flag)
                found = operators.backward(grad_loss, *call)
                for i, grad in zip(kind.own, (found,) if len(kind.own) == 1 else found, strict=True):
                    if i in own:
                        grads[i] = grad
        return (None, None, *grads)
