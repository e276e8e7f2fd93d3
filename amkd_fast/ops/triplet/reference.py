"""The specification of the triplet family in plain PyTorch."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from amkd_fast import backends
from amkd_fast.ops.triplet import selection
from amkd_fast.ops.triplet.distances import finite_or_nan, pairwise, rowwise
from amkd_fast.ops.triplet.selection import Slots
from amkd_fast.ops.triplet.types import Outcome, Rows, Rule, Statistics, Terms

TILE = 1 << 22  # triplets at a time


class Pool(NamedTuple):
    """Candidates and their distances. ``is_positive`` and ``d_ap`` [N, Q], ``is_negative`` and ``d_an`` [N, P]."""

    rows: Rows
    is_positive: Tensor
    is_negative: Tensor
    d_ap: Tensor
    d_an: Tensor


def loss(rows: Rows, rule: Rule, weight: Tensor | None, reduction: str) -> Outcome:
    """The loss of :func:`amkd_fast.triplet_margin_loss`; ``weight`` is in the dtype of the rows."""
    n, p = rows.anchor.shape[0], rows.reference.shape[0]
    if n == 0 or p == 0:
        zero = sum(x[:0].sum() for x in (rows.anchor, rows.positive, rows.reference, weight) if x is not None)
        nothing = zero.detach()
        missing = nothing + n if weight is None else (weight.detach() != 0).sum().to(nothing.dtype)
        value = zero.expand(n) if reduction == "none" else zero
        return Outcome(value, nothing + 1, lambda: Statistics(nothing, nothing, nothing, missing))
    every_pair = rule.mining == "all" or (rule.mining == "semihard" and rows.positive is None)
    pool = _pool(rows, rule, weight, every_pair)
    if rule.mining == "all":
        swept = rule.soft_margin or rule.swap
        terms = _every_triplet_swept(pool, rule) if swept else _every_triplet_sorted(pool, rule.margin)
    else:
        slots = _select(pool, rule)
        terms = _anchor_terms(slots, rule, *(_from_pairs if every_pair else _from_rows)(pool, slots, rule))
    return reduce(terms, weight, reduction)


@torch.no_grad()
def mine_triplets(rows: Rows, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets of :func:`amkd_fast.mine_triplets`, ordered by anchor, then by slot."""
    if rows.anchor.shape[0] == 0 or rows.reference.shape[0] == 0:
        return tuple(torch.empty(3, 0, dtype=torch.int64, device=rows.anchor.device))
    pool = _pool(rows, rule, None, False)
    if rule.mining == "all":
        anchor, positive = pool.is_positive.nonzero(as_tuple=True)
        pair, negative = pool.is_negative[anchor].nonzero(as_tuple=True)
        anchor, positive = anchor[pair], positive[pair]
    else:
        slots = _select(pool, rule)
        anchor, slot = slots.valid.nonzero(as_tuple=True)
        positive, negative = slots.positive[anchor, slot], slots.negative[anchor, slot]
    return anchor, positive if rows.positive is None else anchor, negative


def nearest_negatives(rows: Rows, k: int, distance: str) -> tuple[Tensor, Tensor]:
    """The distances and indices of :func:`amkd_fast.nearest_negatives`."""
    n, p = rows.anchor.shape[0], rows.reference.shape[0]
    if n == 0 or p == 0:
        zero = rows.anchor[:0].sum() + rows.reference[:0].sum()
        return zero + rows.anchor.new_full((n, k), selection.INF), rows.labels.new_full((n, k), -1, dtype=torch.int64)
    is_negative = selection.negatives(rows)
    rows = _drop(rows, is_negative.any(1), is_negative.any(0))
    with torch.no_grad():
        d_an = pairwise(rows.anchor, rows.reference, distance)
        index, found = selection.nearest(d_an, is_negative, k)
    d = rowwise(rows.anchor[:, None], rows.reference[index], distance)
    rest = (0, k - index.shape[1])
    return (
        F.pad(torch.where(found, d, selection.INF), rest, value=selection.INF),
        F.pad(torch.where(found, index, -1), rest, value=-1),
    )


def _pool(rows: Rows, rule: Rule, weight: Tensor | None, differentiable: bool) -> Pool:
    is_positive, is_negative = selection.positives(rows), selection.negatives(rows)
    valid = is_positive.any(1) & is_negative.any(1)
    if weight is not None:
        valid = valid & (weight != 0)
    is_positive, is_negative = is_positive & valid[:, None], is_negative & valid[:, None]
    used = is_negative.any(0) if rows.positive is not None else is_negative.any(0) | is_positive.any(0)
    rows = _drop(rows, valid, used)
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        d_ap = d_an = pairwise(rows.anchor, rows.reference, rule.distance)
        if rows.positive is not None:
            d_ap = pairwise(rows.anchor[:, None], rows.positive[:, None], rule.distance)[:, 0]
    return Pool(rows, is_positive, is_negative, d_ap, d_an)


def _drop(rows: Rows, anchors: Tensor, references: Tensor) -> Rows:
    """Zero the rows that take no part: multiplying by 0 later would not keep their NaN out of loss and gradients.

    An infinity among the others is as good as a NaN.
    """
    return rows._replace(
        anchor=torch.where(anchors[:, None], finite_or_nan(rows.anchor), 0.0),
        positive=None if rows.positive is None else torch.where(anchors[:, None], finite_or_nan(rows.positive), 0.0),
        reference=torch.where(references[:, None], finite_or_nan(rows.reference), 0.0),
    )


@torch.no_grad()
def _select(pool: Pool, rule: Rule) -> Slots:
    candidates = (pool.d_ap.detach(), pool.is_positive, pool.d_an.detach(), pool.is_negative)
    if rule.mining == "hard":
        return selection.hard(*candidates)
    if rule.mining == "topk":
        return selection.topk(*candidates, rule.k)
    return selection.semihard(*candidates, rule.margin, rule.semihard_fallback)


def _from_rows(pool: Pool, slots: Slots, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """D_ap, D_an and D_an before the swap [N, S] of the selected triplets, from their rows: a sparse backward."""
    rows = pool.rows
    anchor, negative = rows.anchor[:, None], rows.reference[slots.negative]  # [N, 1, D], [N, S, D]
    positive = rows.reference[slots.positive[:, :1]] if rows.positive is None else rows.positive[:, None]  # [N, 1, D]
    raw = d_an = rowwise(anchor, negative, rule.distance)
    if rule.swap:
        d_an = _nearer(d_an, rowwise(positive, negative, rule.distance))
    return rowwise(anchor, positive, rule.distance), d_an, raw


def _from_pairs(pool: Pool, slots: Slots, rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """The same [N, P] of the semi-hard triplets of every reference row as a positive: too many to gather rows for."""
    raw = d_an = pool.d_an.gather(1, slots.negative)
    if rule.swap:
        d_pn = pairwise(pool.rows.reference, pool.rows.reference, rule.distance)  # [P, P]
        d_an = _nearer(d_an, d_pn.gather(1, slots.negative.mT).mT)
    return pool.d_ap, d_an, raw


def _anchor_terms(slots: Slots, rule: Rule, d_ap: Tensor, d_an: Tensor, raw_d_an: Tensor) -> Terms:
    """One term an anchor: the mean over its slots."""
    size = slots.valid.sum(1)
    term = torch.where(slots.valid, penalty(d_ap, d_an, rule), 0.0).sum(1) / size.clamp(min=1)
    sums = (torch.where(slots.valid, d.detach(), 0.0).sum(1) for d in (d_ap, raw_d_an))
    return Terms(term, (size > 0).long(), (term > 0).long(), size, *sums)


def _every_triplet_sorted(pool: Pool, margin: float) -> Terms:
    """The hinge over all triplets without visiting them: a distance counts once for each triplet above 0 it is in."""
    n_positive, n_negative = pool.is_positive.sum(1), pool.is_negative.sum(1)
    with torch.no_grad():
        far = pool.d_ap.masked_fill(~pool.is_positive, -selection.INF) + margin
        near = pool.d_an.masked_fill(~pool.is_negative, selection.INF)
        nearer = torch.searchsorted(near.sort(dim=1).values, far)  # [N, Q] negatives below d_ap + margin
        nearer = nearer.clamp(max=n_negative[:, None])
        farther = far.shape[1] - torch.searchsorted(far.sort(dim=1).values, near, right=True)  # [N, P]
    positive = torch.where(pool.is_positive, nearer * (pool.d_ap.double() + margin), 0.0)  # the two sums cancel: fp64
    negative = torch.where(pool.is_negative, farther * pool.d_an.double(), 0.0)
    total = (positive.sum(1) - negative.sum(1)).to(pool.d_an.dtype)
    count = n_positive * n_negative
    return Terms(total, count, torch.where(pool.is_positive, nearer, 0).sum(1), count, *_sums(pool))


def _every_triplet_swept(pool: Pool, rule: Rule) -> Terms:
    """All triplets, a few anchors at a time; the backward visits them again instead of keeping them."""
    rows, d_pn = pool.rows, None
    if rule.swap and rows.positive is None:
        d_pn = pairwise(rows.reference, rows.reference, rule.distance)[None]  # [1, Q, P]
    elif rule.swap:
        d_pn = pairwise(rows.positive, rows.reference, rule.distance)[:, None]  # [N, 1, P]

    def sweep(d_ap: Tensor, d_an: Tensor, is_positive: Tensor, is_negative: Tensor, d_pn: Tensor | None):
        valid = is_positive[:, :, None] & is_negative[:, None, :]  # [n, Q, P]
        d_ap, d_an = d_ap[:, :, None], d_an[:, None, :]
        d_an = d_an if d_pn is None else _nearer(d_an, d_pn)
        term = torch.where(valid, penalty(d_ap, d_an, rule), 0.0)
        return term.sum((1, 2)), valid.sum((1, 2)), (term > 0).sum((1, 2))

    n = max(1, TILE // (pool.d_ap.shape[1] * pool.d_an.shape[1]))
    parts = []
    for i in range(0, pool.d_an.shape[0], n):
        at = slice(i, i + n)
        pn = d_pn if d_pn is None or d_pn.shape[0] == 1 else d_pn[at]
        candidates = (pool.d_ap[at], pool.d_an[at], pool.is_positive[at], pool.is_negative[at], pn)
        if backends.transforming():  # which know no checkpoints
            parts.append(sweep(*candidates))
        else:
            parts.append(checkpoint(sweep, *candidates, use_reentrant=False, preserve_rng_state=False))
    total, count, nonzero = (torch.cat(part) for part in zip(*parts, strict=True))
    return Terms(total, count, nonzero, count, *_sums(pool))


@torch.no_grad()
def _sums(pool: Pool) -> tuple[Tensor, Tensor]:
    """D_ap and D_an summed over all triplets of each anchor [N]: each positive meets each negative."""
    d_ap = torch.where(pool.is_positive, pool.d_ap, 0.0).sum(1) * pool.is_negative.sum(1)
    return d_ap, torch.where(pool.is_negative, pool.d_an, 0.0).sum(1) * pool.is_positive.sum(1)


def penalty(d_ap: Tensor, d_an: Tensor, rule: Rule) -> Tensor:
    """What a triplet costs."""
    if rule.soft_margin:
        return F.softplus(d_ap - d_an, threshold=50.0)  # the default, 20, costs fp64 half its digits
    return F.relu(d_ap - d_an + rule.margin)


def _nearer(d_an: Tensor, d_pn: Tensor) -> Tensor:
    return torch.where(d_pn < d_an, d_pn, d_an)  # torch.minimum would halve the gradient of a tie


def reduce(terms: Terms, weight: Tensor | None, reduction: str) -> Outcome:
    """The loss out of the anchors' terms, and what there is to log about them."""
    total = terms.total if weight is None else weight * terms.total
    return divide(terms._replace(total=total if reduction == "none" else total.sum()), weight, reduction)


def divide(terms: Terms, weight: Tensor | None, reduction: str) -> Outcome:
    """The same where ``total`` has its weights, and but for ``"none"`` is summed up."""
    stats = partial(statistics, terms, weight)
    if reduction in ("sum", "none"):
        return Outcome(terms.total, terms.total.new_ones(()), stats)
    size = size_of(terms.nonzero if reduction == "mean_nonzero" else terms.count, weight, terms.total.dtype)
    return Outcome(terms.total / size, size, stats)


def size_of(count: Tensor, weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """What a mean is divided by, out of the numbers of terms that count [N]: 1 where there are none."""
    if weight is None:
        return count.sum().clamp(min=1).to(dtype)
    size = (weight * count).sum()
    return torch.where(size == 0, 1, size).to(dtype)


@torch.no_grad()
def statistics(terms: Terms, weight: Tensor | None) -> Statistics:
    dtype, triplets = terms.total.dtype, terms.triplets.sum().clamp(min=1)
    without = terms.triplets == 0
    if weight is not None:
        without = without & (weight != 0)
    return Statistics(
        terms.nonzero.sum().to(dtype) / terms.count.sum().clamp(min=1),
        terms.d_ap.sum() / triplets,
        terms.d_an.sum() / triplets,
        without.sum().to(dtype),
    )
