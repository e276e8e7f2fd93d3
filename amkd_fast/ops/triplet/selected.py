"""Hard and top-k mining by the operators: select rows, compute their terms exactly, send gradients to them alone."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.triplet import reference as specification
from amkd_fast.ops.triplet.arguments import Rows, widened, with_rows
from amkd_fast.ops.triplet.distances import DISTANCES, numbers, rowwise
from amkd_fast.ops.triplet.operators import TAIL, Operators, statistics_dtype
from amkd_fast.ops.triplet.reference import REDUCTIONS, Outcome, Rule, Statistics
from amkd_fast.ops.triplet.selection import INF


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
    value, stats = SelectedTerms.apply(
        rows.anchor,
        rows.positive,
        None if rows.is_batch else rows.reference,
        weight,
        positive_index if rows.positive is None else None,
        negative_index,
        (operators, rows, rule, reduction),
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


class SelectedTerms(torch.autograd.Function):
    """Loss and statistics of the selected rows.

    The differentiable gradient that a double backward needs comes from the reference: it is rare, and one definition of
    it is enough.
    """

    @staticmethod
    def forward(ctx, anchor, positive, reference, weight, positive_index, negative_index, call):
        operators, rows, rule, reduction = call
        scalars = (
            DISTANCES.index(rule.distance),
            rule.margin,
            rule.soft_margin,
            rule.swap,
            REDUCTIONS.index(reduction),
        )
        value, stats = operators.terms(anchor, positive, reference, positive_index, negative_index, weight, *scalars)
        made = (positive_index, negative_index, stats, value if weight is not None else None)
        labels = (rows.labels, rows.reference_labels, rows.exclude_labels)
        ctx.unsaved = save(ctx, made, anchor, positive, reference, weight, *labels)
        ctx.backward_op, ctx.rule, ctx.reduction = operators.backward, rule, reduction
        ctx.scalars, ctx.self_offset = scalars, rows.self_offset
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)  # else every backward pass would fill a gradient of zeros for the statistics
        return value, stats

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 7
        positive_index, negative_index, stats, value, *given = saved(ctx, ctx.unsaved)
        anchor, positive, reference, weight = given[:4]
        if backends.differentiates():
            return _differentiable_grads(ctx, grad, *given)
        grads = [None] * 4
        if any(ctx.needs_input_grad[:3]):
            deterministic = torch.are_deterministic_algorithms_enabled()
            found = ctx.backward_op(
                grad, anchor, positive, reference, positive_index, negative_index, weight, stats, *ctx.scalars,
                deterministic,
            )  # fmt: skip
            given = (anchor, positive, reference)
            grads[:3] = [g if x is not None else None for g, x in zip(found, given, strict=True)]
        if ctx.needs_input_grad[3]:
            grads[3] = _weight_grad(ctx, grad, weight, positive_index, negative_index, stats, value)
        return (*grads, None, None, None)


def _weight_grad(ctx, grad, weight, positive_index, negative_index, stats, value) -> Tensor:
    """dL/dw = (term − L · [the term counts]) / size for a mean, the term itself otherwise."""
    n, k = negative_index.shape
    d_ap, d_an = stats[:n, None], stats[n : n + n * k].view(n, k)
    if ctx.rule.swap:
        d_pn = stats[n + n * k : n + 2 * n * k].view(n, k)
        d_an = torch.where(d_pn < d_an, d_pn, d_an)
    slot = negative_index >= 0
    left = slot.any(1) & (weight != 0)
    if positive_index is not None:
        left = left & (positive_index >= 0)
    slot = slot & left[:, None]
    cost = torch.where(slot, specification.penalty(d_ap, d_an, ctx.rule), 0.0)
    term = cost.sum(1) / slot.sum(1).clamp(min=1)
    if ctx.reduction in ("sum", "none"):
        return grad * term
    counts = term > 0 if ctx.reduction == "mean_nonzero" else left
    return grad * (term - torch.where(counts, value, 0.0)) / stats[-TAIL]


def _differentiable_grads(ctx, grad, anchor, positive, reference, weight, labels, reference_labels, exclude_labels):
    rows = Rows(
        anchor,
        positive,
        anchor if reference is None else reference,
        labels,
        reference_labels,
        exclude_labels,
        ctx.self_offset,
        reference is None,
    )

    def value_of(anchor, positive, reference, weight):
        given = widened(with_rows(rows, anchor, positive, reference))
        return specification.loss(given, ctx.rule, weight, ctx.reduction).value

    inputs = (anchor, positive, reference, weight)
    return *reference_grads(value_of, grad, inputs, ctx.needs_input_grad[:4]), None, None, None
