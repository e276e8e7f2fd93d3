"""What the autograd Functions of all families keep for their backward pass."""

from __future__ import annotations

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
