"""Mining ``all`` and ``semihard`` by the operators of a GPU: a few anchors at a time against every reference row.

The matrix product is the library's; what is ours is the sweep over its rows, which gives the terms in the forward pass
and the weight of every pair in the backward pass, where the product is computed again. Memory does not depend on N · P.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.autograd import reference_grads, save, saved
from amkd_fast.ops.triplet import reference as specification
from amkd_fast.ops.triplet.arguments import with_rows
from amkd_fast.ops.triplet.distances import DISTANCES, from_unit, numbers, rowwise, rowwise_grads, short_rows
from amkd_fast.ops.triplet.operators import Operators
from amkd_fast.ops.triplet.types import Outcome, Rows, Rule, Terms

CHUNK = 1 << 24  # products at a time: a GPU needs rows enough to fill itself
SAMPLE = 256  # rows that the common vector is taken from
# Up to this width distances come from differences: it costs little, and rows on a grid tie exactly.
EXACT_WIDTH = 16


class Centred(NamedTuple):
    """Rows whose expanded distances keep their digits: their common vector is subtracted; for cosine, on the sphere."""

    rows: Tensor  # [N, D]; 0 where the row is not finite or has no direction
    square: Tensor  # [N] squared lengths, NaN for such a row and for all narrow ones: their distances are not expanded


def loss(operators: Operators, rows: Rows, rule: Rule, weight: Tensor | None, reduction: str) -> Outcome:
    """The loss of :func:`amkd_fast.triplet_margin_loss` for ``mining`` semihard and all."""
    used = None if weight is None else weight.detach() != 0
    reference = None if rows.is_batch else rows.reference
    total, counts, sums = EveryPair.apply(rows.anchor, rows.positive, reference, used, (operators, rows, rule))
    terms, active, triplets = counts.unbind(1)
    return specification.reduce(Terms(total, terms, active, triplets, *sums.unbind(1)), weight, reduction)


def centred(rows: Rows, distance: str, dtype: torch.dtype) -> tuple[Centred, Centred]:
    """Anchor and reference rows about a vector that they have in common: the mean of some of the reference rows.

    They are rounded to ``dtype`` behind the subtraction alone.
    """
    sets = [rows.reference] if rows.is_batch else [rows.reference, rows.anchor]
    if distance == "cosine":
        # On the sphere in fp64: rounded to fp32 the rows would lose what they do not share. 0/0 becomes NaN.
        sets = [torch.where(short_rows(x)[:, None], torch.nan, x.double()) for x in sets]
        sets = [x / torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in sets]
    sample = sets[0][:: -(-sets[0].shape[0] // SAMPLE)]
    usable = (sample * 0 == 0).all(1, keepdim=True)
    common = torch.where(usable, sample, 0.0).sum(0) / usable.sum().clamp(min=1)
    out = []
    for x in sets:
        x = (x.to(torch.promote_types(x.dtype, dtype)) - common).to(dtype)
        square = (x * x).sum(1)
        odd = ~(square < torch.inf)
        x = x.masked_fill_(odd[:, None], 0.0)
        out.append(Centred(x, square.masked_fill_(odd if x.shape[1] > EXACT_WIDTH else odd | True, torch.nan)))
    return (out[0], out[0]) if rows.is_batch else (out[1], out[0])


class EveryPair(torch.autograd.Function):
    """Total, counts and sums of :class:`Terms` for each anchor; the gradient is that of the totals."""

    @staticmethod
    def forward(ctx, anchor, positive, reference, used, call):
        operators, rows, rule = call
        labels = (rows.labels, rows.reference_labels, rows.exclude_labels)
        ctx.unsaved = save(ctx, (used,), anchor, positive, reference, *labels)
        ctx.operators, ctx.rule, ctx.self_offset = operators, rule, rows.self_offset
        with _full_precision(anchor):
            parts = [operators.rows_forward(product, *rest) for _, product, rest in _chunks(rows, used, rule)]
        total, counts, sums = (torch.cat(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))
        ctx.mark_non_differentiable(counts, sums)
        ctx.set_materialize_grads(False)
        return total, counts, sums

    @staticmethod
    def backward(ctx, grad_total, *_):
        if grad_total is None:
            return (None,) * 5
        used, anchor, positive, reference, *labels = saved(ctx, ctx.unsaved)
        is_batch = reference is None
        rows = Rows(anchor, positive, anchor if is_batch else reference, *labels, ctx.self_offset, is_batch)
        if backends.differentiates():
            return _differentiable_grads(ctx, grad_total, rows, used)
        with _full_precision(anchor):
            return *_grads(ctx.operators, rows, used, ctx.rule, grad_total), None, None


def _grads(operators: Operators, rows: Rows, used: Tensor | None, rule: Rule, grad_total: Tensor):
    """The gradients of anchor, positive and reference; of the first and the last together where they are one."""
    # A pair's gradient is a difference of products that can be a thousand times its size: of rows that are not rounded.
    a, r = centred(rows, rule.distance, torch.float64)
    a_rows, r_rows = a.rows, r.rows
    grad_d_ap, grad_p = [], None
    grad_a, grad_r = a_rows.new_zeros(a_rows.shape), r_rows.new_zeros(r_rows.shape)
    column_sum = r_rows.new_zeros(r_rows.shape[0])
    for at, product, rest in _chunks(rows, used, rule):
        grad_d_ap.append(operators.rows_backward(product, grad_a[at], grad_r, grad_total[at], *rest))
        u = product.double()  # [n, P]
        if rows.is_batch and u.shape[0] == u.shape[1]:  # all anchors at once: both directions in one product
            u = u + u.mT
            grad_a.addcmul_(u.sum(1, keepdim=True), a_rows).addmm_(u, a_rows, alpha=-1)
            break
        column_sum += u.sum(0)
        grad_a[at].addcmul_(u.sum(1, keepdim=True), a_rows[at]).addmm_(u, r_rows, alpha=-1)
        grad_r.addmm_(u.mT, a_rows[at], alpha=-1)
    grad_r.addcmul_(column_sum[:, None], r_rows)
    if rule.distance == "cosine":
        grad_a, grad_r = from_unit(grad_a, rows.anchor), from_unit(grad_r, rows.reference)
    if rows.positive is not None:
        to_anchor, grad_p = rowwise_grads(rows.anchor, rows.positive, torch.cat(grad_d_ap), rule.distance)
        grad_a = grad_a + to_anchor
    grad_a = grad_a + grad_r if rows.is_batch else grad_a
    return grad_a.to(rows.anchor.dtype), grad_p, None if rows.is_batch else grad_r.to(rows.anchor.dtype)


def _chunks(rows: Rows, used: Tensor | None, rule: Rule):
    """For some anchors at a time: where they are, their product with the reference, the operators' other arguments."""
    a, r = centred(rows, rule.distance, rows.anchor.dtype)
    d_ap = None if rows.positive is None else numbers(rowwise(rows.anchor, rows.positive, rule.distance))
    scalars = (
        DISTANCES.index(rule.distance),
        rule.margin,
        rule.mining == "semihard",
        rule.semihard_fallback,
        rule.soft_margin,
    )
    n, p = rows.anchor.shape[0], rows.reference.shape[0]
    step = max(1, CHUNK // p)
    for first in range(0, n, step):
        at = slice(first, min(first + step, n))
        product = a.rows[at] @ r.rows.mT  # [n, P]
        yield (
            at,
            product,
            (
                rows.anchor[at],
                rows.reference,
                a.square[at],
                r.square,
                None if d_ap is None else d_ap[at],
                None if used is None else used[at],
                None if rows.labels is None else rows.labels[at],
                rows.reference_labels,
                None if rows.exclude_labels is None else rows.exclude_labels[at],
                -1 if rows.self_offset is None else rows.self_offset + first,
                *scalars,
            ),
        )


def _full_precision(x: Tensor):
    """Autocast would round the distances, which then enter the loss."""
    return torch.autocast(x.device.type, enabled=False)


def _differentiable_grads(ctx, grad_total: Tensor, rows: Rows, used: Tensor | None):
    """For a double backward, which is rare: through the reference."""
    weight = None if used is None else used.to(rows.anchor.dtype)

    def total_of(anchor, positive, reference):
        return specification.loss(with_rows(rows, anchor, positive, reference), ctx.rule, weight, "none").value

    inputs = (rows.anchor, rows.positive, None if rows.is_batch else rows.reference)
    return *reference_grads(total_of, grad_total, inputs, ctx.needs_input_grad[:3]), None, None
