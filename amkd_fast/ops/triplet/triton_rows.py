"""Triton kernels of the triplet family for every pair of some anchors: mining all and semihard.

A program takes one row of the product. The first kernel turns products into distances, exact where the expanded ones
have lost their digits, and lists the row's positives; the others sweep negatives against that list.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast.ops.triplet.triton_common import (
    COSINE,
    EUCLIDEAN,
    FAR,
    INF,
    WITHOUT_SPILLS,
    columns_together,
    contiguous,
    held,
    inverse_norms,
    jit,
    penalty,
    roles,
    root,
    row_stride,
    shortened,
    slope,
    squares_of_pairs,
    width,
)
from amkd_fast.ops.triton_common import on

NOT_NEGATIVE, POSITIVE = INF, tl.constexpr(float("-inf"))  # in place of distances, which are finite or NaN
FIGURES = tl.constexpr(4)  # of a row: Σ D_ap, Σ D_an, the distances of its nearest and its farthest negative
COUNTS = tl.constexpr(4)  # numbers of positives and negatives, the columns of the nearest and the farthest negative


@jit
def triplet_pairs_kernel(
    product, anchor, reference, anchor_square, reference_square, used, labels, reference_labels, exclude,
    distances, thresholds, places, figures, counts,
    references, columns, anchor_stride, reference_stride, length, self_offset,
    DISTANCE: tl.constexpr, EXCLUDED: tl.constexpr, LISTED: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
    WIDTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One row: distances of its negatives [P], a list of its positives where LISTED, and its FIGURES and COUNTS.

    `length` is P / STEP, which lets the compiler load vectors of STEP.
    """
    ACC: tl.constexpr = product.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) + tl.zeros([1], tl.int64)  # [1]
    here = tl.program_id(0).to(tl.int64) * length * STEP
    a_square = tl.load(anchor_square + row)
    sum_ap = tl.zeros([R], ACC)
    sum_an = tl.zeros([R], ACC)
    near = tl.full([R], INF, ACC)
    far = tl.full([R], -INF, ACC)
    nearest = tl.zeros([R], tl.int32)
    farthest = tl.zeros([R], tl.int32)
    negatives = tl.zeros([R], tl.int32)
    positives = 0
    for start in range(0, length * STEP, R):
        column = start + tl.arange(0, R)
        inside = column < length * STEP
        is_positive, is_negative = roles(labels, reference_labels, exclude, self_offset, row, column, inside, EXCLUDED)
        wanted = is_positive | is_negative if LISTED else is_negative
        if used is not None:
            wanted &= (tl.load(used + row) != 0)[:, None]
        wanted = tl.max(wanted.to(tl.int32), 0) > 0  # [R]: one row
        is_negative = wanted & (tl.max(is_negative.to(tl.int32), 0) > 0)
        is_positive = wanted & (tl.max(is_positive.to(tl.int32), 0) > 0)
        size = tl.load(reference_square + column, mask=inside, other=0.0) + a_square
        square = size - 2.0 * tl.load(product + here + column, mask=inside, other=0.0)
        lost = wanted & ((square >= size * 0.015625) == 0)  # also where a NaN says that only differences will do
        square = tl.where(square < 0.0, 0.0, square)
        if DISTANCE == COSINE:
            square *= 0.5
        if tl.max(lost.to(tl.int32), 0) > 0:
            exact = squares_of_pairs(
                anchor, anchor_stride, row + tl.zeros([R], tl.int64), reference, reference_stride,
                column.to(tl.int64), columns, lost, DISTANCE, ACC, WIDTH, N,
            )  # fmt: skip
            square = tl.where(lost, exact, square)
        if DISTANCE == EUCLIDEAN:
            square = root(square)
        d = held(square)  # [R]
        role = tl.where(is_positive, POSITIVE, NOT_NEGATIVE) if LISTED else NOT_NEGATIVE
        tl.store(distances + here + column, tl.where(is_negative, d, role), mask=inside)
        negatives += is_negative.to(tl.int32)
        sum_an += tl.where(is_negative, d, 0.0)
        key = tl.where(d != d, -INF, d)  # NaN is nearest of all
        closer, further = is_negative & (key < near), is_negative & (d > far)
        near, nearest = tl.where(closer, key, near), tl.where(closer, column, nearest)
        far, farthest = tl.where(further, d, far), tl.where(further, column, farthest)
        if LISTED:
            one = is_positive.to(tl.int32)
            place = here + positives + tl.cumsum(one, 0) - one
            tl.store(thresholds + place, d, mask=is_positive)
            tl.store(places + place, column, mask=is_positive)
            positives += tl.sum(one, 0)
            sum_ap += tl.where(is_positive, d, 0.0)
    row = tl.program_id(0).to(tl.int64)
    least, most = tl.min(near, 0), tl.max(far, 0)
    figures += row * FIGURES
    tl.store(figures, tl.sum(sum_ap, 0))
    tl.store(figures + 1, tl.sum(sum_an, 0))
    tl.store(figures + 2, tl.where(least == -INF, float("nan"), least))
    tl.store(figures + 3, most)
    counts += row * COUNTS
    tl.store(counts, positives)
    tl.store(counts + 1, tl.sum(negatives, 0))
    tl.store(counts + 2, tl.min(tl.where(near == least, nearest, FAR), 0))
    tl.store(counts + 3, tl.min(tl.where(far == most, farthest, FAR), 0))


@triton.jit
def _triplets(counts, row, LISTED: tl.constexpr):
    """The numbers of positives and negatives of a row, both 0 where it lacks one of them."""
    positives = 1
    if LISTED:
        positives = tl.load(counts + row * COUNTS)
    negatives = tl.load(counts + row * COUNTS + 1)
    both = (positives > 0) & (negatives > 0)
    return tl.where(both, positives, 0), tl.where(both, negatives, 0)


@triton.jit
def _semihard(
    distances, d_ap, figures, counts, row, length, margin,
    FALLBACK: tl.constexpr, R: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """For positives [Q] of a row: D_an, its column, and whether the pair is kept."""
    best = tl.full([d_ap.shape[0], R], INF, d_ap.dtype)
    where = tl.zeros([d_ap.shape[0], R], tl.int32)
    for start in range(0, length * STEP, R):
        column = start + tl.arange(0, R)
        d = tl.load(distances + row * length * STEP + column, mask=column < length * STEP, other=INF)[None, :]
        closer = (d > d_ap[:, None]) & (d < best)
        best, where = tl.where(closer, d, best), tl.where(closer, column[None, :], where)
    d_an = tl.min(best, 1)
    index = tl.min(tl.where(best == d_an[:, None], where, FAR), 1)
    kept = d_an < d_ap + margin
    if FALLBACK:
        d_an = tl.where(kept, d_an, tl.load(figures + row * FIGURES + 3))
        index = tl.where(kept, index, tl.load(counts + row * COUNTS + 3))
        kept = d_ap == d_ap
    # No interval holds a NaN. It wins all the same: its pairs stay, with the negative that is then nearest.
    near = tl.load(figures + row * FIGURES + 2)
    either = d_ap + near
    nan = either != either
    d_an = tl.where(nan, near, d_an)
    index = tl.where(nan, tl.load(counts + row * COUNTS + 2), index)
    return d_an, index, kept | nan


@jit
def triplet_sweep_kernel(
    distances, thresholds, figures, counts, total, terms, sums, length, margin: tl.float64,
    SEMIHARD: tl.constexpr, FALLBACK: tl.constexpr, SOFT: tl.constexpr, LISTED: tl.constexpr,
    Q: tl.constexpr, R: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One row's total, (terms, terms above 0, triplets), and sums of D_ap and D_an."""
    ACC: tl.constexpr = distances.dtype.element_ty
    margin = tl.full([], margin, ACC)
    row = tl.program_id(0).to(tl.int64)
    positives, negatives = _triplets(counts, row, LISTED)
    thresholds += row * length * STEP if LISTED else row
    if SEMIHARD:
        cost = tl.zeros([Q], ACC)
        sum_ap = tl.zeros([Q], ACC)
        sum_an = tl.zeros([Q], ACC)
        pairs = tl.zeros([Q], tl.int32)
        for first in range(0, positives, Q):
            there = first + tl.arange(0, Q) < positives
            d_ap = tl.load(thresholds + first + tl.arange(0, Q), mask=there, other=0.0)  # [Q]
            d_an, _, kept = _semihard(distances, d_ap, figures, counts, row, length, margin, FALLBACK, R, STEP)
            kept &= there
            cost += tl.where(kept, penalty(d_ap, d_an, margin, SOFT), 0.0)
            sum_ap += tl.where(kept, d_ap, 0.0)
            sum_an += tl.where(kept, d_an, 0.0)
            pairs += kept.to(tl.int32)
        triplets = tl.sum(pairs, 0).to(tl.int64)
        value = tl.sum(cost, 0) / tl.maximum(triplets, 1).to(ACC)
        count, above = (triplets > 0).to(tl.int64), (value > 0.0).to(tl.int64)
        all_ap, all_an = tl.sum(sum_ap, 0), tl.sum(sum_an, 0)
    else:
        value = tl.zeros([], ACC)
        above = tl.zeros([], tl.int64)
        for first in range(0, positives, Q):
            there = first + tl.arange(0, Q) < positives
            d_ap = tl.load(thresholds + first + tl.arange(0, Q), mask=there, other=0.0)[:, None]  # [Q, 1]
            costs = tl.zeros([Q, R], ACC)
            active = tl.zeros([Q, R], tl.int32)
            for start in range(0, length * STEP, R):
                column = start + tl.arange(0, R)
                d = tl.load(distances + row * length * STEP + column, mask=column < length * STEP, other=INF)[None, :]
                cost = tl.where(there[:, None] & (tl.abs(d) != INF), penalty(d_ap, d, margin, SOFT), 0.0)
                costs += cost
                active += (cost > 0.0).to(tl.int32)
            value += tl.sum(tl.sum(costs, 1), 0)
            above += tl.sum(tl.sum(active.to(tl.int64), 1), 0)
        triplets = positives.to(tl.int64) * negatives
        count = triplets
        all_ap = tl.load(thresholds)
        if LISTED:
            all_ap = tl.load(figures + row * FIGURES)
        all_ap = tl.where(triplets > 0, all_ap * negatives.to(ACC), 0.0)
        all_an = tl.where(triplets > 0, tl.load(figures + row * FIGURES + 1) * positives.to(ACC), 0.0)
    tl.store(total + row, value)
    tl.store(terms + row * 3, count)
    tl.store(terms + row * 3 + 1, above)
    tl.store(terms + row * 3 + 2, triplets)
    tl.store(sums + row * 2, all_ap)
    tl.store(sums + row * 2 + 1, all_an)


@jit
def triplet_choice_kernel(
    distances, thresholds, figures, counts, slopes, choices, kept_pairs, length, margin: tl.float64,
    FALLBACK: tl.constexpr, SOFT: tl.constexpr, LISTED: tl.constexpr, Q: tl.constexpr, R: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """Semi-hard pairs of one row: the derivative of each, the column of its negative, and how many are kept."""
    margin = tl.full([], margin, distances.dtype.element_ty)
    row = tl.program_id(0).to(tl.int64)
    positives, _ = _triplets(counts, row, LISTED)
    place = row * length * STEP if LISTED else row
    pairs = tl.zeros([Q], tl.int32)
    for first in range(0, positives, Q):
        q = first + tl.arange(0, Q)
        d_ap = tl.load(thresholds + place + q, mask=q < positives, other=0.0)
        d_an, index, kept = _semihard(distances, d_ap, figures, counts, row, length, margin, FALLBACK, R, STEP)
        kept &= q < positives
        tl.store(slopes + place + q, tl.where(kept, slope(d_ap, d_an, margin, SOFT), 0.0), mask=q < positives)
        tl.store(choices + place + q, index, mask=q < positives)
        pairs += kept.to(tl.int32)
    tl.store(kept_pairs + row, tl.sum(pairs, 0))


@jit
def triplet_direction_kernel(
    rows, direction, anchors, columns, anchor_stride, R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr
):
    """Whether rows [R] have a direction."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    there = row < anchors
    inverse = inverse_norms(rows, anchor_stride, row, columns, there, WIDTH, N)
    tl.store(direction + row, tl.where(inverse < 0.0, 0, 1), mask=there)


@triton.jit
def _pull(d, row, column, there, anchor_direction, reference_direction, DISTANCE: tl.constexpr):
    """What the derivative by a distance [R] is multiplied with to give U. NaN passes: centred rows have lost theirs."""
    if DISTANCE == EUCLIDEAN:
        found = tl.where(d == 0.0, 0.0, 1.0 / tl.where(d == 0.0, 1.0, d))
    elif DISTANCE == COSINE:
        # The distance to a row without direction is constant.
        moves = tl.load(reference_direction + column, mask=there, other=0) * tl.load(anchor_direction + row)
        found = tl.where(d != d, d, moves.to(d.dtype))
    else:
        found = tl.where(d != d, d, 2.0)
    return found


@jit
def triplet_weights_kernel(
    product, distances, thresholds, places, counts, anchor_direction, reference_direction, slopes, choices,
    kept_pairs, grad_total, grad_positive, length, margin: tl.float64,
    DISTANCE: tl.constexpr, SEMIHARD: tl.constexpr, SOFT: tl.constexpr, LISTED: tl.constexpr,
    Q: tl.constexpr, R: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One row of U, in place of the product; its positives' columns first, then all others."""
    ACC: tl.constexpr = distances.dtype.element_ty
    margin = tl.full([], margin, ACC)
    row = tl.program_id(0).to(tl.int64)
    positives, _ = _triplets(counts, row, LISTED)
    here = row * length * STEP
    listed = here if LISTED else row
    upstream = tl.load(grad_total + row).to(ACC)
    if SEMIHARD:
        upstream /= tl.maximum(tl.load(kept_pairs + row), 1).to(ACC)
    # Also positives that have no negative: their columns must not keep the product.
    columns = tl.load(counts + row * COUNTS) if LISTED else 1
    for first in range(0, columns, Q):
        q = first + tl.arange(0, Q)
        there = q < positives
        d_ap = tl.load(thresholds + listed + q, mask=there, other=0.0)  # [Q]
        if SEMIHARD:
            weight = tl.load(slopes + listed + q, mask=there, other=0.0)
        else:
            slope_sums = tl.zeros([Q, R], ACC)
            for start in range(0, length * STEP, R):
                column = start + tl.arange(0, R)
                d = tl.load(distances + here + column, mask=column < length * STEP, other=INF)[None, :]
                slope_sums += tl.where(tl.abs(d) != INF, slope(d_ap[:, None], d, margin, SOFT), 0.0)
            weight = tl.sum(slope_sums, 1)
        weight = tl.where(there, upstream * weight, 0.0)
        if LISTED:
            place = tl.load(places + listed + q, mask=q < columns, other=0)
            pull = _pull(d_ap, row, place, there, anchor_direction, reference_direction, DISTANCE)
            u = tl.where(weight != 0.0, weight * pull, 0.0)
            tl.store(product + here + place, u, mask=q < columns)
        else:
            tl.store(grad_positive + row + q, weight, mask=q < columns)
    for start in range(0, length * STEP, R):
        column = start + tl.arange(0, R)
        inside = column < length * STEP
        d = tl.load(distances + here + column, mask=inside, other=INF)  # [R]
        slope_sums = tl.zeros([Q, R], ACC)
        for first in range(0, positives, Q):
            q = first + tl.arange(0, Q)
            there = (q < positives)[:, None]
            if SEMIHARD:
                weight = tl.load(slopes + listed + q, mask=q < positives, other=0.0)[:, None]
                choice = tl.load(choices + listed + q, mask=q < positives, other=-1)[:, None]
                slope_sums += tl.where(choice == column[None, :], weight, 0.0)
            else:
                d_ap = tl.load(thresholds + listed + q, mask=q < positives, other=0.0)[:, None]
                slope_sums += tl.where(there, slope(d_ap, d[None, :], margin, SOFT), 0.0)
        weight = tl.sum(slope_sums, 0)
        pull = _pull(d, row, column, inside, anchor_direction, reference_direction, DISTANCE)
        u = tl.where((tl.abs(d) != INF) & (weight != 0.0), -upstream * weight * pull, 0.0)
        tl.store(product + here + column, u, mask=inside & (d != POSITIVE))


def _pairs(
    product, anchor, reference, anchor_square, reference_square, positive_distance, used, labels, reference_labels,
    exclude_labels, self_offset, distance,
):  # fmt: skip
    """What the sweeps read: distances, positives and their columns, figures and counts; and the step of their loads."""
    n, p = product.shape
    anchor, reference = columns_together(anchor), columns_together(reference)
    if reference_labels is None and labels is not None:
        raise ValueError("reference_labels=None: must be given where labels is")
    squares = contiguous(anchor_square, reference_square)
    labels, reference_labels, exclude_labels = contiguous(labels, reference_labels, exclude_labels)
    is_listed = positive_distance is None
    distances = torch.empty_like(product)
    thresholds = torch.empty_like(product) if is_listed else positive_distance.contiguous()
    places = product.new_empty(n, p, dtype=torch.int32) if is_listed else None
    figures = product.new_empty(n, FIGURES.value)
    counts = product.new_empty(n, COUNTS.value, dtype=torch.int32)
    step, w = math.gcd(16 // product.element_size(), p), width(anchor, reference)
    is_wide = product.dtype == torch.float64 or distance == COSINE.value
    triplet_pairs_kernel[(n,)](
        product, anchor, reference, *squares, None if used is None else used.contiguous(),
        labels, reference_labels, exclude_labels, distances, thresholds, places, figures, counts,
        p, anchor.shape[1] // w, row_stride(anchor) // w, row_stride(reference) // w, p // step, self_offset,
        DISTANCE=distance, EXCLUDED=0 if exclude_labels is None else exclude_labels.shape[1], LISTED=is_listed,
        R=shortened(128 if is_wide else 256, p), N=shortened(8 if is_wide else 16, anchor.shape[1]),
        WIDTH=w, STEP=step, num_warps=4, **WITHOUT_SPILLS,
    )  # fmt: skip
    return distances, thresholds, places, figures, counts, step


def _directions(rows: Tensor) -> Tensor:
    """Which rows [R, D] have one: int32 [R]."""
    rows = columns_together(rows)
    (n, d), w = rows.shape, width(rows)
    found = rows.new_empty(n, dtype=torch.int32)
    triplet_direction_kernel[(triton.cdiv(n, 16),)](
        rows, found, n, d // w, row_stride(rows) // w, R=16, N=shortened(64, d), WIDTH=w, num_warps=4
    )
    return found


def _tile(product: Tensor) -> dict:
    """Tiles [Q, R] of positives against negatives."""
    return {"Q": 16, "R": shortened(64, product.shape[1])}


def launch_rows_forward(
    product: Tensor, anchor: Tensor, reference: Tensor, anchor_square: Tensor, reference_square: Tensor,
    positive_distance: Tensor | None, used: Tensor | None, labels: Tensor | None, reference_labels: Tensor | None,
    exclude_labels: Tensor | None, self_offset: int, distance: int, margin: float, semihard: bool, fallback: bool,
    soft_margin: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(total, counts, sums), as amkd_fast/ops/schemas.py describes them."""
    n, p = product.shape
    total, sums = product.new_zeros(n), product.new_zeros(n, 2)
    terms = product.new_zeros(n, 3, dtype=torch.int64)
    if 0 in (n, p):
        return total, terms, sums
    with on(product):
        distances, thresholds, _, figures, counts, step = _pairs(
            product.contiguous(), anchor, reference, anchor_square, reference_square, positive_distance, used,
            labels, reference_labels, exclude_labels, self_offset, distance,
        )  # fmt: skip
        triplet_sweep_kernel[(n,)](
            distances, thresholds, figures, counts, total, terms, sums, p // step, margin,
            SEMIHARD=semihard, FALLBACK=fallback, SOFT=soft_margin, LISTED=positive_distance is None,
            **_tile(product), STEP=step, num_warps=4, **WITHOUT_SPILLS,
        )  # fmt: skip
    return total, terms, sums


def launch_rows_backward(
    product: Tensor, grad_anchor: Tensor, grad_reference: Tensor, grad_total: Tensor, anchor: Tensor,
    reference: Tensor, anchor_square: Tensor, reference_square: Tensor, positive_distance: Tensor | None,
    used: Tensor | None, labels: Tensor | None, reference_labels: Tensor | None, exclude_labels: Tensor | None,
    self_offset: int, distance: int, margin: float, semihard: bool, fallback: bool, soft_margin: bool,
) -> Tensor:  # fmt: skip
    """The gradient of positive_distance; ``product`` becomes U, in which close pairs stay: its products are fp64."""
    n, p = product.shape
    is_listed = positive_distance is None
    grad_positive = product.new_zeros(0 if is_listed else n)
    if 0 in (n, p):
        return grad_positive
    u = product.contiguous()
    with on(product):
        distances, thresholds, places, figures, counts, step = _pairs(
            u, anchor, reference, anchor_square, reference_square, positive_distance, used,
            labels, reference_labels, exclude_labels, self_offset, distance,
        )  # fmt: skip
        slopes = choices = kept = None
        directions = [_directions(x) if distance == COSINE.value else None for x in (anchor, reference)]
        if semihard:
            slopes, choices = torch.empty_like(thresholds), torch.empty_like(thresholds, dtype=torch.int32)
            kept = product.new_empty(n, dtype=torch.int32)
            triplet_choice_kernel[(n,)](
                distances, thresholds, figures, counts, slopes, choices, kept, p // step, margin,
                FALLBACK=fallback, SOFT=soft_margin, LISTED=is_listed,
                **_tile(product), STEP=step, num_warps=4, **WITHOUT_SPILLS,
            )  # fmt: skip
        triplet_weights_kernel[(n,)](
            u, distances, thresholds, places, counts, *directions, slopes, choices, kept,
            grad_total.contiguous(), grad_positive, p // step, margin,
            DISTANCE=distance, SEMIHARD=semihard, SOFT=soft_margin, LISTED=is_listed,
            **_tile(product), STEP=step, num_warps=4, **WITHOUT_SPILLS,
        )  # fmt: skip
    if u is not product:
        product.copy_(u)
    return grad_positive
