"""The operators that every fast backend of the triplet family has, and the shapes of what they return.

`csrc/library.cpp` states the schemas; the Triton operators have the same with the suffix `_triton`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from amkd_fast.ops import row_loss
from amkd_fast.ops.triplet.terms import TAIL, TERMS

NAMES = ("triplet_select", "triplet_terms", "triplet_backward", "triplet_rows_forward", "triplet_rows_backward")


class Operators(NamedTuple):
    """The operators of one backend."""

    select: Callable
    selected: row_loss.Operators  # terms of what is selected
    rows_forward: Callable
    rows_backward: Callable
    every_pair: Callable | None = None  # does the work of the two before and of the products around them


def registered(suffix: str = "") -> Operators:
    """The operators `amkd_fast::triplet_*` with ``suffix``, made known to torch.compile."""
    fakes = (fake_select, fake_terms, fake_backward, fake_rows_forward, fake_rows_backward)
    for name, fake in zip(NAMES, fakes, strict=True):
        torch.library.register_fake(f"amkd_fast::{name}{suffix}", fake)
    select, terms, backward, *rows = (getattr(torch.ops.amkd_fast, f"{name}{suffix}").default for name in NAMES)
    return Operators(select, row_loss.operators(TERMS, terms, backward), *rows)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64 rows, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def fake_select(anchor, reference, labels, reference_labels, exclude_labels, self_offset, distance, k, find_positive):
    """(positive, negative)."""
    n = anchor.shape[0]
    positive = anchor.new_empty((n if find_positive else 0,), dtype=torch.int64)
    return positive, anchor.new_empty((n, k), dtype=torch.int64)


def fake_terms(
    anchor, positive, reference, positive_index, negative_index, weight, distance, margin, soft_margin, swap, reduction
):
    """(loss, stats)."""
    dtype, (n, k) = statistics_dtype(anchor.dtype), negative_index.shape
    size = n * (1 + k * (2 if swap else 1)) + TAIL
    return anchor.new_empty((n,) if reduction == 3 else (), dtype=dtype), anchor.new_empty((size,), dtype=dtype)


def fake_backward(grad_loss, anchor, positive, reference, *_):
    """(grad_anchor, grad_positive, grad_reference)."""
    n, d = anchor.shape
    grads = [anchor.new_empty(n, d)]
    return tuple(grads + [anchor.new_empty(0 if x is None else x.shape[0], d) for x in (positive, reference)])


def fake_rows_forward(product, *_):
    """(total, counts, sums)."""
    n = product.shape[0]
    return product.new_empty((n,)), product.new_empty((n, 3), dtype=torch.int64), product.new_empty((n, 2))


def fake_rows_backward(
    product, grad_anchor, grad_reference, grad_total, anchor, reference, anchor_square, reference_square,
    positive_distance, *_
):  # fmt: skip
    """The gradient of positive_distance."""
    return product.new_empty((0 if positive_distance is None else product.shape[0],))


def fake_every_pair(
    anchor, reference, positive_distance, used, upstream, labels, reference_labels, exclude_labels, self_offset,
    distance, margin, semihard, fallback, soft_margin, with_gradient,
):  # fmt: skip
    """(total, counts, sums, grad_anchor, grad_reference, grad_positive_distance)."""
    n, d = anchor.shape
    of_reference = with_gradient and reference is not None
    return (
        anchor.new_empty((n,)),
        anchor.new_empty((n, 3), dtype=torch.int64),
        anchor.new_empty((n, 2)),
        anchor.new_empty((n if with_gradient else 0, d)),
        anchor.new_empty((reference.shape[0] if of_reference else 0, d)),
        anchor.new_empty((n if with_gradient and positive_distance is not None else 0,)),
    )
