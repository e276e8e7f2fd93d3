"""Triton kernels of the triplet family for the selected rows: their terms, and the gradients that go to them alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast.ops.triplet.operators import TAIL
from amkd_fast.ops.triplet.triton_common import (
    COSINE,
    EUCLIDEAN,
    WITHOUT_SPILLS,
    columns_together,
    contiguous,
    inverse_norms,
    jit,
    load_rows,
    penalty,
    root,
    row_stride,
    shortened,
    slope,
    squares_of_pairs,
    width,
)
from amkd_fast.ops.triplet.types import statistics_dtype
from amkd_fast.ops.triton_common import on

MEAN, MEAN_NONZERO, SUM, NONE = (tl.constexpr(i) for i in range(4))  # reference.REDUCTIONS
SUMS = 8  # loss, what it is divided by, terms, terms above 0, D_ap, D_an, triplets, anchors without one


@triton.jit
def _distance(
    x, x_stride, x_row, y, y_stride, y_row, columns, there,
    DISTANCE: tl.constexpr, ACC: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Distance of pairs of rows [R], 0 where there is none."""
    found = squares_of_pairs(x, x_stride, x_row, y, y_stride, y_row, columns, there, DISTANCE, ACC, WIDTH, N)
    if DISTANCE == EUCLIDEAN:
        found = root(found)
    return tl.where(there, found, 0.0)


@triton.jit
def _left(positive_index, negative_index, weight, row, there, slots):
    """Rows of the positives [R], number of triplets, and which anchors are not left out."""
    positive_row = row
    if positive_index is not None:
        positive_row = tl.load(positive_index + row)
    count = tl.zeros([row.shape[0]], tl.int32)
    for slot in range(slots):
        count += (tl.load(negative_index + row * slots + slot) >= 0).to(tl.int32)
    has_triplet = there & (positive_row >= 0) & (count > 0)
    left = has_triplet
    missing = there & ((positive_row < 0) | (count == 0))
    if weight is not None:
        used = tl.load(weight + row) != 0.0
        left &= used
        missing &= used
    return tl.maximum(positive_row, 0), count, left, missing


@triton.jit
def _store_totals(total, size, terms, active, d_ap, d_an, triplets, missing, loss, tail, REDUCTION: tl.constexpr):
    """The call's scalars."""
    divisor = tl.zeros_like(size) + 1.0
    if REDUCTION == MEAN or REDUCTION == MEAN_NONZERO:  # noqa: SIM109 - Triton has no `in`
        divisor = tl.where(size == 0.0, 1.0, size)
    if REDUCTION != NONE:
        tl.store(loss, total / divisor)
    tl.store(tail, divisor)
    tl.store(tail + 1, terms)
    tl.store(tail + 2, active)
    tl.store(tail + 3, d_ap / tl.maximum(triplets, 1.0))
    tl.store(tail + 4, d_an / tl.maximum(triplets, 1.0))
    tl.store(tail + 5, missing)


@jit
def triplet_terms_kernel(
    anchor, positive, reference, positive_index, negative_index, weight, loss, stats, sums,
    anchors, columns, anchor_stride, positive_stride, reference_stride, slots, margin: tl.float64,
    DISTANCE: tl.constexpr, SOFT: tl.constexpr, SWAP: tl.constexpr, REDUCTION: tl.constexpr, ALONE: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Distances and terms of the anchors, R at a time, and the program's SUMS."""
    ACC: tl.constexpr = stats.dtype.element_ty
    margin = tl.full([], margin, ACC)
    anchors = anchors.to(tl.int64)
    near_stats = stats + anchors
    other_stats = near_stats + anchors * slots
    total = tl.zeros([R], ACC)
    size = tl.zeros([R], ACC)
    terms = tl.zeros([R], ACC)
    active = tl.zeros([R], ACC)
    sum_ap = tl.zeros([R], ACC)
    sum_an = tl.zeros([R], ACC)
    triplets = tl.zeros([R], ACC)
    missing = tl.zeros([R], ACC)
    for tile in range(tl.program_id(0), tl.cdiv(anchors, R), tl.num_programs(0)):
        row = tile * R + tl.arange(0, R).to(tl.int64)  # [R]
        there = row < anchors
        row = tl.minimum(row, anchors - 1)
        positive_row, count, left, without = _left(positive_index, negative_index, weight, row, there, slots)
        d_ap = _distance(
            anchor, anchor_stride, row, positive, positive_stride, positive_row, columns, left, DISTANCE, ACC, WIDTH, N
        )  # fmt: skip
        tl.store(stats + row, d_ap, mask=there)
        cost = tl.zeros([R], ACC)
        for slot in range(slots):
            place = row * slots + slot
            index = tl.load(negative_index + place)
            found = left & (index >= 0)
            index = tl.maximum(index, 0)
            d_an = _distance(
                anchor, anchor_stride, row, reference, reference_stride, index, columns, found, DISTANCE, ACC, WIDTH, N
            )  # fmt: skip
            tl.store(near_stats + place, d_an, mask=there)
            sum_an += d_an
            if SWAP:
                d_pn = _distance(
                    positive, positive_stride, positive_row, reference, reference_stride, index, columns, found,
                    DISTANCE, ACC, WIDTH, N,
                )  # fmt: skip
                tl.store(other_stats + place, d_pn, mask=there)
                d_an = tl.where(d_pn < d_an, d_pn, d_an)
            cost += tl.where(found, penalty(d_ap, d_an, margin, SOFT), 0.0)
        term = tl.where(left, cost / tl.maximum(count, 1).to(ACC), 0.0)
        above = (term > 0.0).to(ACC)
        counts = left.to(ACC) if REDUCTION == MEAN else above
        terms += left.to(ACC)
        active += above
        share, divisor = term, counts
        if weight is not None:
            w = tl.load(weight + row)
            share, divisor = tl.where(left, w * term, 0.0), tl.where(counts > 0.0, w, 0.0)
        if REDUCTION == NONE:
            tl.store(loss + row, share, mask=there)
        total += share
        size += divisor
        count = tl.where(left, count, 0).to(ACC)
        triplets += count
        sum_ap += tl.where(left, d_ap * count, 0.0)
        missing += without.to(ACC)
    total, size, terms, active = tl.sum(total, 0), tl.sum(size, 0), tl.sum(terms, 0), tl.sum(active, 0)
    sum_ap, sum_an, triplets, missing = tl.sum(sum_ap, 0), tl.sum(sum_an, 0), tl.sum(triplets, 0), tl.sum(missing, 0)
    if ALONE:
        tail = other_stats + anchors * slots if SWAP else other_stats
        _store_totals(total, size, terms, active, sum_ap, sum_an, triplets, missing, loss, tail, REDUCTION)
    else:
        programs = tl.num_programs(0)
        sums += tl.program_id(0)
        tl.store(sums, total)
        tl.store(sums + programs, size)
        tl.store(sums + 2 * programs, terms)
        tl.store(sums + 3 * programs, active)
        tl.store(sums + 4 * programs, sum_ap)
        tl.store(sums + 5 * programs, sum_an)
        tl.store(sums + 6 * programs, triplets)
        tl.store(sums + 7 * programs, missing)


@triton.jit
def _total(sums, field, programs, P: tl.constexpr):
    program = tl.arange(0, P)
    return tl.sum(tl.load(sums + field * programs + program, mask=program < programs, other=0.0), 0)


@jit
def triplet_totals_kernel(sums, loss, tail, programs, P: tl.constexpr, REDUCTION: tl.constexpr):
    """The call's scalars from the SUMS of all programs, in one program and so in a fixed order."""
    _store_totals(
        _total(sums, 0, programs, P), _total(sums, 1, programs, P), _total(sums, 2, programs, P),
        _total(sums, 3, programs, P), _total(sums, 4, programs, P), _total(sums, 5, programs, P),
        _total(sums, 6, programs, P), _total(sums, 7, programs, P), loss, tail, REDUCTION,
    )  # fmt: skip


@triton.jit
def _unit_scale(base, stride, row, columns, there, DISTANCE: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr):
    """1/|x| for cosine, which nothing else asks for."""
    if DISTANCE == COSINE:
        found = inverse_norms(base, stride, row, columns, there, WIDTH, N)
    else:
        found = tl.zeros([row.shape[0]], tl.float64)
    return found


@triton.jit
def _pull(x, y, x_inverse, y_inverse, coefficient, d, ACC: tl.constexpr, DISTANCE: tl.constexpr):
    """The gradients of coefficient · D(x, y) [R, N] to x and to y; a coefficient of 0 lets nothing through."""
    if DISTANCE == COSINE:
        # Through the normalisation: less its part along û, for which û·(û − v̂) = |û − v̂|²/2 = D.
        u, v = x.to(tl.float64) * x_inverse[:, None], y.to(tl.float64) * y_inverse[:, None]
        short = (x_inverse < 0.0) | (y_inverse < 0.0)
        factor = tl.where(short, 0.0, coefficient.to(tl.float64))[:, None]
        d = d.to(tl.float64)[:, None]
        to_x = (factor * x_inverse[:, None]) * (u - v - d * u)
        to_y = (factor * y_inverse[:, None]) * (v - u - d * v)
    else:
        factor = 2.0 * coefficient
        if DISTANCE == EUCLIDEAN:
            factor = tl.where(d == 0.0, 0.0, coefficient / tl.where(d == 0.0, 1.0, d))
        factor = factor[:, None]
        to_x = factor * (x - y)
        to_y = -to_x
    through = factor != 0.0
    return tl.where(through, to_x, 0.0).to(ACC), tl.where(through, to_y, 0.0).to(ACC)


@triton.jit
def _scatter(value, target, entry, index, column, columns, there, changes, WIDTH: tl.constexpr, ATOMIC: tl.constexpr):
    """Add gradients [R, N] to the rows that ``index`` names, or lay them down as entries for an ordered sum."""
    inside = (column < columns * WIDTH)[None, :]
    if ATOMIC:
        here = target + index[:, None] * columns * WIDTH + column[None, :]
        tl.atomic_add(here, value, mask=(there & changes)[:, None] & inside, sem="relaxed")
    else:
        here = target + entry[:, None] * columns * WIDTH + column[None, :]
        tl.store(here, value, mask=there[:, None] & inside)


@jit
def triplet_grad_kernel(
    grad_loss, anchor, positive, reference, positive_index, negative_index, weight, stats,
    grad_anchor, grad_positive, scattered,
    anchors, columns, anchor_stride, positive_stride, reference_stride, grad_stride, slots, margin: tl.float64,
    DISTANCE: tl.constexpr, SOFT: tl.constexpr, SWAP: tl.constexpr, ATOMIC: tl.constexpr, BATCH: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradients of R anchors and of their explicit positives; those of reference rows are scattered.

    With BATCH and ATOMIC the anchors are reference rows themselves, and `scattered` is their gradient.
    """
    ACC: tl.constexpr = stats.dtype.element_ty
    margin = tl.full([], margin, ACC)
    anchors = anchors.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)  # [R]
    there = row < anchors
    row = tl.minimum(row, anchors - 1)
    positive_row, count, left, _ = _left(positive_index, negative_index, weight, row, there, slots)
    near_stats = stats + anchors
    other_stats = near_stats + anchors * slots
    tail = other_stats + anchors * slots if SWAP else other_stats
    upstream = tl.load(grad_loss + row * grad_stride).to(ACC) / (tl.load(tail) * tl.maximum(count, 1).to(ACC))
    if weight is not None:
        upstream *= tl.load(weight + row)
    d_ap = tl.load(stats + row)
    a_inverse = _unit_scale(anchor, anchor_stride, row, columns, left, DISTANCE, WIDTH, N)
    p_inverse = _unit_scale(positive, positive_stride, positive_row, columns, left, DISTANCE, WIDTH, N)
    extra = 0 if positive_index is None else 1
    for first in range(0, columns * WIDTH, N):
        column = first + tl.arange(0, N)
        inside = (column < columns * WIDTH)[None, :]
        a = load_rows(anchor, anchor_stride, row, column, columns, left, WIDTH).to(ACC)  # [R, N]
        p = load_rows(positive, positive_stride, positive_row, column, columns, left, WIDTH).to(ACC)
        to_anchor = tl.zeros([R, N], ACC)
        to_positive = tl.zeros([R, N], ACC)
        pulled = tl.zeros([R], ACC)  # the coefficient of D_ap
        for slot in range(slots):
            place = row * slots + slot
            index = tl.load(negative_index + place)
            named = there & (index >= 0)
            found = left & named
            index = tl.maximum(index, 0)
            d_an = tl.load(near_stats + place)
            n = load_rows(reference, reference_stride, index, column, columns, found, WIDTH).to(ACC)
            n_inverse = _unit_scale(reference, reference_stride, index, columns, found, DISTANCE, WIDTH, N)
            if SWAP:
                d_pn = tl.load(other_stats + place)
                swapped = d_pn < d_an
                coefficient = tl.where(found, upstream * slope(d_ap, tl.where(swapped, d_pn, d_an), margin, SOFT), 0.0)
                from_p = tl.where(swapped, -coefficient, 0.0)
                from_a = tl.where(swapped, 0.0, -coefficient)
                more_p, to_n = _pull(p, n, p_inverse, n_inverse, from_p, d_pn, ACC, DISTANCE)
                to_positive += more_p
                more_a, more_n = _pull(a, n, a_inverse, n_inverse, from_a, d_an, ACC, DISTANCE)
                to_n += more_n
            else:
                coefficient = tl.where(found, upstream * slope(d_ap, d_an, margin, SOFT), 0.0)
                more_a, to_n = _pull(a, n, a_inverse, n_inverse, -coefficient, d_an, ACC, DISTANCE)
            to_anchor += more_a
            pulled += coefficient
            entry = row * (slots + extra) + extra + slot
            _scatter(to_n, scattered, entry, index, column, columns, named, coefficient != 0.0, WIDTH, ATOMIC)
        more_a, more_p = _pull(a, p, a_inverse, p_inverse, pulled, d_ap, ACC, DISTANCE)
        to_anchor += more_a
        to_positive += more_p
        if positive_index is None:
            here = grad_positive + row[:, None] * columns * WIDTH + column[None, :]
            tl.store(here, to_positive, mask=there[:, None] & inside)
        else:
            named = there & (tl.load(positive_index + row) >= 0)
            _scatter(
                to_positive, scattered, row * (slots + 1), positive_row, column, columns, named, left, WIDTH, ATOMIC
            )  # fmt: skip
        here = grad_anchor + row[:, None] * columns * WIDTH + column[None, :]
        if BATCH and ATOMIC:
            tl.atomic_add(here, to_anchor, mask=left[:, None] & inside, sem="relaxed")
        else:
            tl.store(here, to_anchor, mask=there[:, None] & inside)


@jit
def triplet_ordered_sum_kernel(
    entries, order, starts, own, grad, references, columns,
    R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Reference rows' gradients: their entries one after the other, then what they have of their own as anchors."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    there = row < references
    row = tl.minimum(row, references - 1)
    column = tl.program_id(1) * N + tl.arange(0, N)
    first, last = tl.load(starts + row), tl.load(starts + row + 1)
    total = tl.zeros([R, N], entries.dtype.element_ty)
    for step in range(tl.max(last - first, 0)):
        unread = first + step < last
        entry = tl.load(order + first + step, mask=unread, other=0)
        total += load_rows(entries, columns, entry, column, columns, unread, WIDTH)
    if own is not None:
        total += load_rows(own, columns, row, column, columns, there, WIDTH)
    here = grad + row[:, None] * columns * WIDTH + column[None, :]
    tl.store(here, total, mask=there[:, None] & (column < columns * WIDTH)[None, :])


MOST_PROGRAMS = 1024  # which is also how many one program can add up in triplet_totals_kernel
ALONE = 1 << 15  # elements of rows that one program reads sooner than a second launch takes


def _tile(anchors: int, columns: int, wide: bool) -> dict:
    """Tiles [R, N] of rows."""
    n = shortened(64 if wide else 128, columns)
    return {"R": shortened(max((512 if wide else 1024) // n, 1), anchors), "N": n}


def _wide(rows: Tensor, distance: int) -> bool:
    return rows.dtype == torch.float64 or distance == COSINE.value


def _sets(anchor, positive, reference):
    """Rows of anchors, positives and negatives in unit column stride, and the arguments that describe them."""
    anchor = columns_together(anchor)
    reference = anchor if reference is None else columns_together(reference)
    positive = reference if positive is None else columns_together(positive)
    w = width(anchor, positive, reference)
    strides = (anchor.shape[1] // w, *(row_stride(x) // w for x in (anchor, positive, reference)))
    return (anchor, positive, reference), strides, w


def launch_terms(
    anchor: Tensor, positive: Tensor | None, reference: Tensor | None, positive_index: Tensor | None,
    negative_index: Tensor, weight: Tensor | None, distance: int, margin: float, soft_margin: bool, swap: bool,
    reduction: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, stats), as amkd_fast/ops/schemas.py and csrc/triplet/triplet.h describe them."""
    (n, d), k, dtype = anchor.shape, negative_index.shape[1], statistics_dtype(anchor.dtype)
    loss = anchor.new_empty((n,) if reduction == NONE.value else (), dtype=dtype)
    stats = anchor.new_empty(n * (1 + k * (2 if swap else 1)) + TAIL, dtype=dtype)
    if n == 0:
        stats.zero_()[-TAIL] = 1.0
        return loss.zero_(), stats
    rows, strides, w = _sets(anchor, positive, reference)
    positive_index, negative_index, weight = contiguous(positive_index, negative_index, weight)
    tile = _tile(n, d, _wide(anchor, distance))
    alone = n * (k + 2) * d <= ALONE
    programs = 1 if alone else min(triton.cdiv(n, tile["R"]), MOST_PROGRAMS)
    sums = None if alone else anchor.new_empty(SUMS * programs, dtype=dtype)
    with on(anchor):
        triplet_terms_kernel[(programs,)](
            *rows, positive_index, negative_index, weight, loss, stats, sums, n, *strides, k, margin,
            DISTANCE=distance, SOFT=soft_margin, SWAP=swap, REDUCTION=reduction, ALONE=alone, **tile, WIDTH=w,
            num_warps=4, **WITHOUT_SPILLS,
        )  # fmt: skip
        if not alone:
            triplet_totals_kernel[(1,)](
                sums, loss, stats[-TAIL:], programs, P=MOST_PROGRAMS, REDUCTION=reduction, num_warps=4
            )
    return loss, stats


def launch_backward(
    grad_loss: Tensor, anchor: Tensor, positive: Tensor | None, reference: Tensor | None,
    positive_index: Tensor | None, negative_index: Tensor, weight: Tensor | None, stats: Tensor, distance: int,
    margin: float, soft_margin: bool, swap: bool, reduction: int, deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of anchor, positive and reference."""
    (n, d), k = anchor.shape, negative_index.shape[1]
    is_batch, p = reference is None, n if reference is None else reference.shape[0]
    grad_positive = anchor.new_empty(0 if positive is None else n, d, dtype=stats.dtype)
    if 0 in (n, d):
        return anchor.new_zeros(n, d), grad_positive.to(anchor.dtype), anchor.new_zeros(0 if is_batch else p, d)
    rows, strides, w = _sets(anchor, positive, reference)
    positive_index, negative_index, weight = contiguous(positive_index, negative_index, weight)
    if deterministic:
        entries = k if positive_index is None else k + 1
        scattered = anchor.new_empty(n * entries, d, dtype=stats.dtype)
        grad_anchor = anchor.new_empty(n, d, dtype=stats.dtype)
    else:
        scattered = anchor.new_zeros(p, d, dtype=stats.dtype)
        grad_anchor = scattered if is_batch else anchor.new_empty(n, d, dtype=stats.dtype)
    tile = _tile(n, d, _wide(anchor, distance))
    with on(anchor):
        triplet_grad_kernel[(triton.cdiv(n, tile["R"]),)](
            grad_loss, *rows, positive_index, negative_index, weight, stats, grad_anchor, grad_positive, scattered,
            n, *strides, grad_loss.stride(0) if reduction == NONE.value else 0, k, margin,
            DISTANCE=distance, SOFT=soft_margin, SWAP=swap, ATOMIC=not deterministic, BATCH=is_batch,
            **tile, WIDTH=w, num_warps=4, **WITHOUT_SPILLS,
        )  # fmt: skip
        if deterministic:
            own = grad_anchor if is_batch else None
            scattered = _ordered_sum(scattered, positive_index, negative_index, own, p)
    if is_batch:
        grad_anchor, scattered = scattered, anchor.new_empty(0, d)  # no output may be another
    return tuple(x.to(anchor.dtype) for x in (grad_anchor, grad_positive, scattered))


def _ordered_sum(entries, positive_index, negative_index, own, references) -> Tensor:
    """Entries added up by the reference row that they belong to, in their own order."""
    d = entries.shape[1]
    index = negative_index if positive_index is None else torch.cat([positive_index[:, None], negative_index], 1)
    index = torch.where(index < 0, references, index).flatten()
    key, order = index.sort(stable=True)
    starts = torch.searchsorted(key, torch.arange(references + 1, device=key.device))
    grad = entries.new_empty(references, d)
    n = shortened(128, d)
    r = shortened(max(512 // n, 1), references)
    w = width(entries)
    triplet_ordered_sum_kernel[(triton.cdiv(references, r), triton.cdiv(d, n))](
        entries, order, starts, own, grad, references, d // w, R=r, N=n, WIDTH=w, num_warps=4
    )  # fmt: skip
    return grad
