"""Mining ``all`` and ``semihard`` by the one operator of the CPU.

It has the terms and their gradient out of one pass over the pairs: a loss that is one number needs no second pass,
since what the backward pass brings then is only a factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.triplet import reference as specification
from amkd_fast.ops.triplet.arguments import with_rows
from amkd_fast.ops.triplet.distances import DISTANCES, from_unit, rowwise, rowwise_grads
from amkd_fast.ops.triplet.operators import Operators
from amkd_fast.ops.triplet.types import Outcome, Rows, Rule, Terms


def loss(operators: Operators, rows: Rows, rule: Rule, weight: Tensor | None, reduction: str) -> Outcome:
    """The loss of :func:`amkd_fast.triplet_margin_loss` for ``mining`` semihard and all."""
    given = (rows.anchor, rows.positive, None if rows.is_batch else rows.reference)
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    # Of a weight that learns, what a mean is divided by has a gradient, too.
    reduced = "sum" if reduction != "none" and weight is not None and weight.requires_grad else reduction
    call = (operators, rows, rule, reduced, learns and reduction != "none")
    value, size, counts, sums = EveryPair.apply(*given, weight, call)
    if reduced != reduction:
        return specification.divide(_terms(counts, sums)._replace(total=value), weight, reduction)
    return Outcome(value, size, lambda: specification.statistics(_terms(counts, sums), weight))


def _terms(counts: Tensor, sums: Tensor) -> Terms:
    """All but the totals, in whose place is one of the sums."""
    return Terms(sums[:, 0], *counts.unbind(1), *sums.unbind(1))


class EveryPair(torch.autograd.Function):
    """Weighted totals, [N] or reduced, what a mean was divided by, counts and sums of :class:`Terms`."""

    @staticmethod
    def forward(ctx, anchor, positive, reference, weight, call):
        operators, rows, rule, reduction, with_gradient = call
        total, counts, sums, grads = _operate(operators, rows, rule, weight, weight, with_gradient)
        value = total if weight is None else weight * total
        if reduction != "none":
            value = value.sum()
        elif value is total:  # which is kept
            value = value.clone()
        if reduction in ("sum", "none"):
            size = total.new_ones(())
        else:
            size = specification.size_of(counts[:, 1 if reduction == "mean_nonzero" else 0], weight, total.dtype)
            value = value / size
        ctx.reduction, ctx.operators, ctx.rule, ctx.self_offset = reduction, operators, rule, rows.self_offset
        labels = (rows.labels, rows.reference_labels, rows.exclude_labels)
        ctx.unsaved = save(ctx, (total, size, *grads), anchor, positive, reference, weight, *labels)
        ctx.mark_non_differentiable(size, counts, sums)
        ctx.set_materialize_grads(False)
        return value, size, counts, sums

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 5
        total, size, grad_a, grad_p, grad_r, anchor, positive, reference, weight, *labels = saved(ctx, ctx.unsaved)
        rows = Rows(
            anchor,
            positive,
            anchor if reference is None else reference,
            *labels,
            ctx.self_offset,
            reference is None,
        )
        if backends.differentiates():
            return _differentiable_grads(ctx, grad, rows, weight)
        grads = (grad_a, grad_p, grad_r)
        if ctx.reduction == "none" and any(ctx.needs_input_grad[:3]):
            upstream = grad if weight is None else grad * weight
            grads = _operate(ctx.operators, rows, ctx.rule, weight, upstream, True)[-1]
        elif ctx.reduction != "none":
            grad = grad if ctx.reduction == "sum" else grad / size
            grads = [None if g is None else grad * g for g in grads]
        return *grads, grad * total if ctx.needs_input_grad[3] else None, None


def _operate(
    operators: Operators,
    rows: Rows,
    rule: Rule,
    weight: Tensor | None,
    upstream: Tensor | None,
    with_gradient: bool,
):
    """(total, counts, sums) of the operator, and of ``upstream`` times total the gradients of the three sets of rows,
    None for one that is not there."""
    total, counts, sums, grad_a, grad_r, grad_d_ap = operators.every_pair(
        rows.anchor,
        None if rows.is_batch else rows.reference,
        None if rows.positive is None else rowwise(rows.anchor, rows.positive, rule.distance),
        None if weight is None else weight != 0,
        upstream,
        rows.labels,
        None if rows.is_batch else rows.reference_labels,
        rows.exclude_labels,
        -1 if rows.self_offset is None else rows.self_offset,
        DISTANCES.index(rule.distance),
        rule.margin,
        rule.mining == "semihard",
        rule.semihard_fallback,
        rule.soft_margin,
        with_gradient,
    )
    if not with_gradient:
        return total, counts, sums, (None,) * 3
    grad_p = None
    if rule.distance == "cosine":
        grad_a = from_unit(grad_a, rows.anchor)
        grad_r = grad_r if rows.is_batch else from_unit(grad_r, rows.reference)
    if rows.positive is not None:
        to_anchor, grad_p = rowwise_grads(rows.anchor, rows.positive, grad_d_ap, rule.distance)
        grad_a = grad_a + to_anchor
    return total, counts, sums, (grad_a, grad_p, None if rows.is_batch else grad_r)


def _differentiable_grads(ctx, grad: Tensor, rows: Rows, weight: Tensor | None):
    """For a double backward, which is rare: through the reference."""

    def value_of(anchor, positive, reference, weight):
        given = with_rows(rows, anchor, positive, reference)
        return specification.loss(given, ctx.rule, weight, ctx.reduction).value

    inputs = (rows.anchor, rows.positive, None if rows.is_batch else rows.reference, weight)
    return *reference_grads(value_of, grad, inputs, ctx.needs_input_grad[:4]), None
