"""What the autograd Functions of all families share: tensors for the backward pass, and gradients by the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def save(ctx, *tensors: Tensor | None) -> None:
    """Like ``ctx.save_for_backward``, for tensors that were made under ``torch.inference_mode`` too.

    Autograd refuses to save these. They have no version that could tell of a change either, so the context holds them
    as they are.
    """
    ctx.unsaved = None
    if not torch.compiler.is_compiling():  # which saves what its own plan says
        for x in tensors:
            if x is not None and x.is_inference():
                ctx.unsaved = [x if x is not None and x.is_inference() else None for x in tensors]
                tensors = [None if x is not None and x.is_inference() else x for x in tensors]
                break
    ctx.save_for_backward(*tensors)


def saved(ctx) -> tuple[Tensor | None, ...]:
    """What :func:`save` has kept."""
    if ctx.unsaved is None:
        return ctx.saved_tensors
    return tuple(x if y is None else y for x, y in zip(ctx.saved_tensors, ctx.unsaved, strict=True))


def reference_grads(
    loss_of: Callable[..., Tensor],
    grad_loss: Tensor,
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    differentiable: bool = True,
) -> list[Tensor | None]:
    """The gradient of each input that needs one, of the loss that a reference makes of all of them.

    Each stands for itself alone: where one was made from another, as the views of one tensor, the way through the other
    is autograd's to add, and must not be in here too.
    """
    with torch.enable_grad():
        if differentiable:
            own = [x.view_as(x) if need else x for x, need in zip(inputs, needed, strict=True)]
        else:
            own = [x.detach().requires_grad_() if need else x for x, need in zip(inputs, needed, strict=True)]
        wanted = [i for i, need in enumerate(needed) if need]
        found = torch.autograd.grad(loss_of(*own), [own[i] for i in wanted], grad_loss, create_graph=differentiable)
    grads = [None] * len(inputs)
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    return grads
