"""What the autograd Functions of all families share: tensors for the backward pass, and gradients by the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling


def save(ctx, made: tuple[Tensor | None, ...], *given: Tensor | None) -> list[Tensor | None] | None:
    """Save what a forward pass has made and what it was given, for :func:`saved`, but for what is returned.

    Autograd refuses to save tensors that were made under ``torch.inference_mode``. They have no version that could tell
    of a change either, so the context may hold them as they are.
    """
    unsaved = None
    if not is_compiling():  # which saves what its own plan says
        for x in given:
            if x is not None and x.is_inference():
                unsaved = [x if x is not None and x.is_inference() else None for x in given]
                given = [None if x is not None and x.is_inference() else x for x in given]
                break
    ctx.save_for_backward(*made, *given)
    return unsaved


def saved(ctx, unsaved: list[Tensor | None] | None) -> tuple[Tensor | None, ...]:
    """What was made, then what was given; ``unsaved`` is what :func:`save` returned."""
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
