"""Hard and top-k mining by the operators: select rows, compute their terms exactly, send gradients to them alone."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from amkd_fast.ops.row_loss import row_loss
from amkd_fast.ops.triplet.distances import DISTANCES, numbers, rowwise
from amkd_fast.ops.triplet.operators import TAIL, Operators
from amkd_fast.ops.triplet.selection import INF
from amkd_fast.ops.triplet.types import REDUCTIONS, Outcome, Rows, Rule, Statistics, statistics_dtype


def select(operators: Operators, rows: Rows, distance: str, k: int, find_positive: bool) -> tuple[Tensor, Tensor]:
    """Index of the farthest positive [N] and of the k nearest negatives [N, k]; −1 where there is none."""
    return operators.select(
        rows.anchor,
        None if rows.is_batch else rows.reference,
        rows.labels,
        rows.reference_labels,
        rows.exclude_labels,
        -1 if rows.self_offset is None else rows.self_offset,
        DISTANCES.index(distance),
        k,
        find_positive,
    )


def loss(operators: Operators, rows: Rows, rule: Rule, weight: Tensor | None, reduction: str) -> Outcome:
    """The loss of :func:`amkd_fast.triplet_margin_loss` for ``mining`` hard and topk."""
    k = min(rule.k, rows.reference.shape[0]) if rule.mining == "topk" else 1
    with torch.no_grad():
        positive_index, negative_index = select(operators, rows, rule.distance, k, rows.positive is None)
    value, stats = row_loss(
        operators.terms,
        (
            DISTANCES.index(rule.distance),
            rule.margin,
            rule.soft_margin,
            rule.swap,
            REDUCTIONS.index(reduction),
            -1 if rows.self_offset is None else rows.self_offset,
        ),
        rows.anchor,
        rows.positive,
        None if rows.is_batch else rows.reference,
        positive_index if rows.positive is None else None,
        negative_index,
        weight,
        rows.labels,
        None if rows.is_batch else rows.reference_labels,
        rows.exclude_labels,
    )
    return Outcome(value, stats[-TAIL], partial(_statistics, stats))


def _statistics(stats: Tensor) -> Statistics:
    _, terms, active, positive, negative, missing = stats[-TAIL:].unbind()
    return Statistics(active / terms.clamp(min=1), positive, negative, missing)


@torch.no_grad()
def mine(operators: Operators, rows: Rows, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets of :func:`amkd_fast.mine_triplets` for ``mining`` hard and topk."""
    k = min(rule.k, rows.reference.shape[0]) if rule.mining == "topk" else 1
    positive, negative = select(operators, rows, rule.distance, k, rows.positive is None)
    found = negative >= 0
    if rows.positive is None:
        found = found & (positive >= 0)[:, None]
    anchor, slot = found.nonzero(as_tuple=True)
    return anchor, anchor if rows.positive is not None else positive[anchor], negative[anchor, slot]


def nearest_negatives(operators: Operators, rows: Rows, k: int, distance: str) -> tuple[Tensor, Tensor]:
    """The distances and indices of :func:`amkd_fast.nearest_negatives`."""
    with torch.no_grad():
        _, index = select(operators, rows, distance, min(k, rows.reference.shape[0]), False)
    found = (index >= 0)[:, :, None]
    # An empty slot computes with zeros: it must not bring a NaN in.
    dtype = statistics_dtype(rows.anchor.dtype)
    anchor = torch.where(found, rows.anchor[:, None].to(dtype), 0.0)  # [N, k, D]
    negative = torch.where(found, rows.reference[index.clamp(min=0)].to(dtype), 0.0)
    d = torch.where(index >= 0, numbers(rowwise(anchor, negative, distance)), INF)
    rest = (0, k - index.shape[1])
    return F.pad(d, rest, value=INF), F.pad(index, rest, value=-1)
