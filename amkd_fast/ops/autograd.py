"""What the autograd Functions of all families share: tensors for the backward pass, and gradients by the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling


def save(ctx, made: tuple[Tensor | None, ...], *given: Tensor | None) -> list[Tensor | None] | None:
    """Save what a forward pass has made and what it was given, for :func:`saved`, but for what is returned.

    Autograd refuses to save tensors that were made under ``torch.inference_mode``. They have no version that could tell
    of a change either, so the context may hold them as they are.
    """
    unsaved: list[Tensor | None] | None = None
    if not is_compiling():  # which saves what its own plan says
        for x in given:
            if x is not None and x.is_inference():
                unsaved = [x if x is not None and x.is_inference() else None for x in given]
                given = tuple(None if x is not None and x.is_inference() else x for x in given)
                break
    ctx.save_for_backward(*made, *given)
    return unsaved


def saved(ctx, unsaved: list[Tensor | None] | None) -> tuple[Any, ...]:
    """What was made, then what was given; ``unsaved`` is what :func:`save` returned.

    Each is a tensor or None, as who saved it knows: the type is that of torch's ``ctx.saved_tensors``.
    """
    tensors = ctx.saved_tensors
    if unsaved is None:
        return tensors
    made = len(tensors) - len(unsaved)
    return *tensors[:made], *(x if y is None else y for x, y in zip(tensors[made:], unsaved, strict=True))


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
    own = list(inputs)
    wanted: dict[int, Tensor] = {}
    with torch.enable_grad():
        for i, (x, need) in enumerate(zip(inputs, needed, strict=True)):
            if need and x is not None:
                own[i] = wanted[i] = x.view_as(x) if differentiable else x.detach().requires_grad_()
        found = torch.autograd.grad(loss_of(*own), list(wanted.values()), grad_loss, create_graph=differentiable)
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, grad in zip(wanted, found, strict=True):
        grads[i] = grad
    return grads
