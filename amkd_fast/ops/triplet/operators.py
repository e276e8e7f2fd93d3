"""The operators of the triplet family by backend, and the shapes of what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from amkd_fast.ops import row_loss, schemas
from amkd_fast.ops.triplet.terms import TAIL, TERMS
from amkd_fast.ops.triplet.types import statistics_dtype


class Operators(NamedTuple):
    """The operators of one backend."""

    select: Callable
    terms: row_loss.Operators  # of what is selected
    rows_forward: Callable
    rows_backward: Callable
    every_pair: Callable | None  # of a CPU: does the work of the two before and of the products around them


def _fake_select(anchor, reference, labels, reference_labels, exclude_labels, self_offset, distance, k, find_positive):
    """(positive, negative)."""
    n = anchor.shape[0]
    positive = anchor.new_empty((n if find_positive else 0,), dtype=torch.int64)
    return positive, anchor.new_empty((n, k), dtype=torch.int64)


def _fake_terms(
    anchor, positive, reference, positive_index, negative_index, weight, distance, margin, soft_margin, swap, reduction
):
    """(loss, stats)."""
    dtype, (n, k) = statistics_dtype(anchor.dtype), negative_index.shape
    size = n * (1 + k * (2 if swap else 1)) + TAIL
    return anchor.new_empty((n,) if reduction == 3 else (), dtype=dtype), anchor.new_empty((size,), dtype=dtype)


def _fake_backward(grad_loss, anchor, positive, reference, *_):
    """(grad_anchor, grad_positive, grad_reference)."""
    n, d = anchor.shape
    grads = [anchor.new_empty(n, d)]
    return tuple(grads + [anchor.new_empty(0 if x is None else x.shape[0], d) for x in (positive, reference)])


def _fake_rows_forward(product, *_):
    """(total, counts, sums)."""
    n = product.shape[0]
    return product.new_empty((n,)), product.new_empty((n, 3), dtype=torch.int64), product.new_empty((n, 2))


def _fake_rows_backward(
    product, grad_anchor, grad_reference, grad_total, anchor, reference, anchor_square, reference_square,
    positive_distance, *_
):  # fmt: skip
    """The gradient of positive_distance."""
    return product.new_empty((0 if positive_distance is None else product.shape[0],))


def _fake_every_pair(
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


_TRITON = "amkd_fast.ops.triplet.triton_"
schemas.register("triplet_select", _fake_select, _TRITON + "select:launch_select")
schemas.register("triplet_terms", _fake_terms, _TRITON + "terms:launch_terms")
schemas.register("triplet_backward", _fake_backward, _TRITON + "terms:launch_backward")
schemas.register("triplet_rows_forward", _fake_rows_forward, _TRITON + "rows:launch_rows_forward")
schemas.register("triplet_rows_backward", _fake_rows_backward, _TRITON + "rows:launch_rows_backward")
schemas.register("triplet_every_pair", _fake_every_pair)

_terms = row_loss.operators(TERMS, "triplet_terms", "triplet_backward")
OPERATORS = {
    backend: Operators(
        schemas.operator("triplet_select", backend),
        _terms[backend],
        schemas.operator("triplet_rows_forward", backend),
        schemas.operator("triplet_rows_backward", backend),
        schemas.operator("triplet_every_pair", backend) if backend == "cpu" else None,
    )
    for backend in ("cpu", "cuda", "triton")
}
