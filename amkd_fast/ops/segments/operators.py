"""The operators that every fast backend of the segments family has; `csrc/library.cpp` states their schemas.

Triton's have the same with the suffix `_triton`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Operators(NamedTuple):
    """Those of one backend."""

    forward: Callable
    backward: Callable
    scale: Callable


def registered(suffix: str = "") -> Operators:
    """The operators `amkd_fast::segments_…` with ``suffix``, made known to torch.compile."""
    for name, fake in (("forward", fake_forward), ("backward", fake_backward), ("scale", fake_scale)):
        torch.library.register_fake(f"amkd_fast::segments_{name}{suffix}", fake)
    found = (getattr(torch.ops.amkd_fast, f"segments_{name}{suffix}").default for name in Operators._fields)
    return Operators(*found)


def loss_dtype(segments: Sequence[Tensor]) -> torch.dtype:
    """That of the loss of segments, its means and its weights."""
    wide = any(segment.dtype == torch.float64 for segment in segments)
    return torch.float64 if wide else torch.float32


def dense(segment: Tensor) -> Tensor:
    """The segment, or a contiguous copy where its elements do not fill one block of memory."""
    if segment.is_contiguous() or segment.stride() == torch.empty_like(segment, device="meta").stride():
        return segment
    return segment.contiguous()


def fake_forward(student, teacher, weights, factors, with_grads):
    """Shapes and dtypes of the forward operator's outputs; the gradients lie as the segments do."""
    dtype = loss_dtype(student)
    loss, means = student[0].new_empty((), dtype=dtype), student[0].new_empty(len(student), dtype=dtype)
    return loss, means, _fake_grads(student) if with_grads else []


def fake_backward(grad_loss, student, *_):
    """The gradients."""
    return _fake_grads(student)


def fake_scale(*_) -> None:
    """Returns nothing: the gradients change in place."""


def _fake_grads(student):
    return [torch.empty_like(dense(segment)) for segment in student]
