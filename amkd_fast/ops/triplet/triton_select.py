"""Triton kernels of the triplet family that select: farthest positive, nearest negatives.

A small problem is one launch of differences. A large one, in fp32, is a tensor of centred rows and tiles of `tl.dot`,
whose expanded distances name a few candidates for each anchor; their distances are then taken from differences. What
the product cannot order (rows that are not finite, overflow when squared or have no direction) is noticed tile by tile
and done by differences as well, without the host hearing of it. Splits of the reference axis keep candidates of their
own, which a merge puts together: the result does not depend on the order in which programs run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.triplet.triton_common import (
    COSINE,
    FAR,
    INF,
    WITHOUT_SPILLS,
    columns_together,
    contiguous,
    held,
    inverse_norms,
    jit,
    load_rows,
    roles,
    row_stride,
    shortened,
    squares_of_pairs,
    width,
)
from amkd_fast.ops.triplet.types import statistics_dtype
from amkd_fast.ops.triton_common import on

SAMPLES = tl.constexpr(8)


@triton.jit
def _nothing(A: tl.constexpr, K: tl.constexpr, ACC: tl.constexpr):
    """K empty places for each anchor: keys of +inf, and negative indices that all differ."""
    return tl.full([A, K], INF, ACC), tl.zeros([A, K], tl.int32) - 1 - tl.arange(0, K)[None, :]


@triton.jit
def _keep(best, where, key, index):
    """Put the smallest keys of a tile [A, R] into the K best [A, K]. Indices [R] ascend from call to call, so that an
    equal key that comes later is never smaller."""
    worst, least = tl.max(best, 1), tl.min(key, 1)  # [A]
    while tl.max((least < worst).to(tl.int32), 0) > 0:
        enters = (least < worst)[:, None]
        lowest = tl.min(tl.where(key == least[:, None], index[None, :], FAR), 1)[:, None]
        # Of equal worst keys the highest index leaves.
        highest = tl.max(tl.where(best == worst[:, None], where, -FAR), 1)[:, None]
        leaves = enters & (best == worst[:, None]) & (where == highest)
        best, where = tl.where(leaves, least[:, None], best), tl.where(leaves, lowest, where)
        key = tl.where(enters & (index[None, :] == lowest), INF, key)
        worst, least = tl.max(best, 1), tl.min(key, 1)
    return best, where


@triton.jit
def _store_nearest(key, index, out, row, there, k):
    """The k smallest keys of [A, C] in ascending order, ties by index: out [A, k], −1 where there is none."""
    for slot in range(k):
        least = tl.min(key, 1)
        lowest = tl.min(tl.where(key == least[:, None], index, FAR), 1)
        tl.store(out + row * k + slot, tl.where(least < INF, lowest, -1).to(tl.int64), mask=there)
        key = tl.where(index == lowest[:, None], INF, key)


@triton.jit
def _keys(square, is_positive, is_negative):
    """What orders the candidates [A, R]: the smallest key is the nearest negative, or the farthest positive."""
    square = held(square)
    nan = square != square
    near = tl.where(is_negative, tl.where(nan, -INF, square), INF)
    return tl.where(is_positive, tl.where(nan, -INF, -square), INF), near


@triton.jit
def _store_candidates(best, where, keys, indices, row, there, K: tl.constexpr):
    """The K best of this split: keys and indices [N, splits, K]."""
    place = (row * tl.num_programs(1) + tl.program_id(1))[:, None] * K + tl.arange(0, K)[None, :]
    tl.store(indices + place, where, mask=there[:, None])
    if keys is not None:
        tl.store(keys + place, best, mask=there[:, None])


@triton.jit
def _split(references, R: tl.constexpr):
    """First and last reference row of this program, in whole tiles."""
    tiles = tl.cdiv(tl.cdiv(references, R), tl.num_programs(1))
    first = tl.program_id(1) * tiles * R
    return first, tl.minimum(first + tiles * R, references)


@jit
def triplet_direct_kernel(
    anchor, reference, labels, reference_labels, exclude, refused, positive, negative,
    positive_keys, positive_indices, negative_keys, negative_indices,
    anchors, references, columns, anchor_stride, reference_stride, self_offset, slots,
    DISTANCE: tl.constexpr, EXCLUDED: tl.constexpr, FIND_POSITIVE: tl.constexpr, KEEP: tl.constexpr,
    KEEP_POSITIVE: tl.constexpr, A: tl.constexpr, R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """A anchors against one split of the reference rows, from differences.

    Where `refused` is given it does only what `triplet_dot_kernel` refused, which took BLOCK anchors at a time.
    """
    ACC: tl.constexpr = tl.float64 if anchor.dtype.element_ty == tl.float64 else tl.float32
    WORK: tl.constexpr = tl.float64 if DISTANCE == COSINE else ACC
    if refused is not None:
        block = tl.program_id(0) * A // BLOCK
        if tl.load(refused + block * tl.num_programs(1) + tl.program_id(1)) == 0:
            return
    row = tl.program_id(0).to(tl.int64) * A + tl.arange(0, A)  # [A]
    there = row < anchors
    real = tl.minimum(row, anchors - 1)  # anchors behind the last one repeat it
    best, where = _nothing(A, KEEP, ACC)
    best_positive, where_positive = _nothing(A, KEEP_POSITIVE, ACC)
    all_anchors = row >= 0
    if DISTANCE == COSINE:
        a_inverse = inverse_norms(anchor, anchor_stride, real, columns, all_anchors, WIDTH, N)
    first, last = _split(references, R)
    for start in range(first, last, R):
        column = start + tl.arange(0, R)  # [R]
        inside = column < references
        r_row = column.to(tl.int64)
        if DISTANCE == COSINE:
            r_inverse = inverse_norms(reference, reference_stride, r_row, columns, inside, WIDTH, N)
        square = tl.zeros([A, R], WORK)
        for d in range(0, columns * WIDTH, N):
            axis = d + tl.arange(0, N)
            a = load_rows(anchor, anchor_stride, real, axis, columns, all_anchors, WIDTH).to(WORK)  # [A, N]
            r = load_rows(reference, reference_stride, r_row, axis, columns, inside, WIDTH).to(WORK)  # [R, N]
            a, r = a + a * 0.0, r + r * 0.0  # NaN in place of an infinity
            if DISTANCE == COSINE:
                a, r = a * a_inverse[:, None], r * r_inverse[:, None]
            difference = a[:, None, :] - r[None, :, :]
            square += tl.sum(difference * difference, 2)
        if DISTANCE == COSINE:
            short = (a_inverse < 0.0)[:, None] | (r_inverse < 0.0)[None, :]
            square = tl.where(short, 1.0, square * 0.5)
        is_positive, is_negative = roles(
            labels, reference_labels, exclude, self_offset, real, column, inside, EXCLUDED
        )  # fmt: skip
        far, near = _keys(square.to(ACC), is_positive, is_negative)
        best, where = _keep(best, where, near, column)
        if FIND_POSITIVE:
            best_positive, where_positive = _keep(best_positive, where_positive, far, column)
    if negative_indices is None:
        _store_nearest(best, where, negative, row, there, slots)
        if FIND_POSITIVE:
            _store_nearest(best_positive, where_positive, positive, row, there, 1)
    else:
        _store_candidates(best, where, negative_keys, negative_indices, row, there, KEEP)
        if FIND_POSITIVE:
            _store_candidates(best_positive, where_positive, positive_keys, positive_indices, row, there, KEEP_POSITIVE)


@triton.jit
def _merge(
    anchor, reference, keys, indices, out, anchors, columns, anchor_stride, reference_stride, candidates, k,
    DISTANCE: tl.constexpr, ACC: tl.constexpr, FARTHEST: tl.constexpr, A: tl.constexpr, C: tl.constexpr,
    N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    pair = tl.arange(0, A * C)
    row = tl.program_id(0).to(tl.int64) * A + pair // C  # [A · C]
    inside = (row < anchors) & (pair % C < candidates)
    place = row * candidates + pair % C
    index = tl.load(indices + place, mask=inside, other=-1)
    found = index >= 0
    if keys is not None:
        key = tl.load(keys + place, mask=inside, other=INF)
    else:
        square = squares_of_pairs(
            anchor, anchor_stride, row, reference, reference_stride, tl.maximum(index, 0).to(tl.int64), columns, found,
            DISTANCE, ACC, WIDTH, N,
        )  # fmt: skip
        far, near = _keys(square, found, found)
        key = far if FARTHEST else near
    row = tl.program_id(0).to(tl.int64) * A + tl.arange(0, A)
    _store_nearest(tl.reshape(key, [A, C]), tl.reshape(index, [A, C]), out, row, row < anchors, k)


@jit
def triplet_merge_kernel(
    anchor, reference, positive, negative, positive_keys, positive_indices, negative_keys, negative_indices,
    anchors, columns, anchor_stride, reference_stride, slots,
    DISTANCE: tl.constexpr, FIND_POSITIVE: tl.constexpr, KEEP: tl.constexpr, KEEP_POSITIVE: tl.constexpr,
    SPLITS: tl.constexpr, A: tl.constexpr, C: tl.constexpr, C_POSITIVE: tl.constexpr, N: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """The candidates of A anchors in all splits, by their keys where those are exact, else by exact distances."""
    ACC: tl.constexpr = tl.float64 if anchor.dtype.element_ty == tl.float64 else tl.float32
    _merge(
        anchor, reference, negative_keys, negative_indices, negative, anchors, columns, anchor_stride,
        reference_stride, SPLITS * KEEP, slots, DISTANCE, ACC, False, A, C, N, WIDTH,
    )  # fmt: skip
    if FIND_POSITIVE:
        _merge(
            anchor, reference, positive_keys, positive_indices, positive, anchors, columns, anchor_stride,
            reference_stride, SPLITS * KEEP_POSITIVE, 1, DISTANCE, ACC, True, A, C_POSITIVE, N, WIDTH,
        )  # fmt: skip


@jit
def triplet_middle_kernel(
    reference, middle, references, columns, reference_stride,
    DISTANCE: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """N columns of a vector that the rows share: the median of SAMPLES rows, coordinate by coordinate.

    Unlike a mean it costs no pass over the rows, ignores a few wild ones, and consists of their own numbers: rows of
    integers stay integers after the subtraction, so that the product still orders them exactly.
    """
    sample = tl.arange(0, SAMPLES)
    row = (2 * sample + 1).to(tl.int64) * references // (2 * SAMPLES)  # [S]
    column = tl.program_id(0) * N + tl.arange(0, N)
    x = load_rows(reference, reference_stride, row, column, columns, row >= 0, WIDTH).to(tl.float64)  # [S, N]
    if DISTANCE == COSINE:
        x *= inverse_norms(reference, reference_stride, row, columns, row >= 0, WIDTH, N)[:, None]
    x = tl.where(x == x, x, INF)
    before = (x[None, :, :] < x[:, None, :]) | (
        (x[None, :, :] == x[:, None, :]) & (sample[None, :, None] < sample[:, None, None])
    )
    rank = tl.sum(before.to(tl.int32), 1)  # [S, N]
    median = tl.sum(tl.where(rank == SAMPLES // 2, x, 0.0), 0)
    median = tl.where(tl.abs(median) < INF, median, 0.0)
    tl.store(middle + column, median, mask=column < columns * WIDTH)


@jit
def triplet_centre_kernel(
    anchor, reference, middle, centred, square, anchors, references, columns, anchor_stride, reference_stride,
    DISTANCE: tl.constexpr, R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """R rows less the middle, in fp32, and their squared lengths; NaN for a row without direction.

    The anchors come first, then the reference rows where they are others.
    """
    out = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)  # [R]
    blocks = tl.cdiv(anchors, R)
    if tl.program_id(0) < blocks:
        base, stride, row, length = anchor, anchor_stride.to(tl.int64), out, anchors.to(tl.int64)
    else:
        base, stride, row = reference, reference_stride.to(tl.int64), out - blocks * R
        length = references.to(tl.int64)
        out = row + anchors
    there = row < length
    if DISTANCE == COSINE:
        inverse = inverse_norms(base, stride, row, columns, there, WIDTH, N)
    total = tl.zeros([R], tl.float32)
    for first in range(0, columns * WIDTH, N):
        column = first + tl.arange(0, N)
        x = load_rows(base, stride, row, column, columns, there, WIDTH).to(tl.float64)
        if DISTANCE == COSINE:
            x *= inverse[:, None]
        x -= tl.load(middle + column, mask=column < columns * WIDTH, other=0.0)[None, :]
        x = x.to(tl.float32)
        total += tl.sum(x * x, 1)
        here = centred + out[:, None] * columns * WIDTH + column[None, :]
        tl.store(here, x, mask=there[:, None] & (column < columns * WIDTH)[None, :])
    if DISTANCE == COSINE:
        total = tl.where(inverse < 0.0, float("nan"), total)
    tl.store(square + out, total, mask=there)


@jit
def triplet_dot_kernel(
    anchor, reference, anchor_square, reference_square, labels, reference_labels, exclude, refused,
    positive_indices, negative_indices, anchors, references, columns, self_offset,
    EXCLUDED: tl.constexpr, FIND_POSITIVE: tl.constexpr, KEEP: tl.constexpr,
    KEEP_POSITIVE: tl.constexpr, A: tl.constexpr, R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
    SPAN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Candidates of A anchors in one split of the reference rows by |r|² − 2 a·r of centred rows."""
    row = tl.program_id(0).to(tl.int64) * A + tl.arange(0, A)
    there = row < anchors
    real = tl.minimum(row, anchors - 1)
    a_square = tl.load(anchor_square + real)  # [A]
    best, where = _nothing(A, KEEP, tl.float32)
    best_positive, where_positive = _nothing(A, KEEP_POSITIVE, tl.float32)
    # Twice a product of such rows does not overflow; a NaN fails every comparison.
    unfit = tl.max(tl.where(a_square < 8e37, 0, 1), 0)
    first, last = _split(references, SPAN)  # what triplet_direct_kernel takes in R
    for start in range(first, last, R):
        column = start + tl.arange(0, R)
        inside = column < last
        product = tl.zeros([A, R], tl.float32)
        for d in range(0, columns * WIDTH, N):
            axis = d + tl.arange(0, N)
            a = load_rows(anchor, columns, real, axis, columns, row >= 0, WIDTH)
            r = load_rows(reference, columns, column.to(tl.int64), axis, columns, inside, WIDTH)
            product = tl.dot(a, tl.trans(r), product, input_precision=PRECISION)
        r_square = tl.load(reference_square + column, mask=inside, other=0.0)  # [R]
        unfit = tl.maximum(unfit, tl.max(tl.where(r_square < 8e37, 0, 1), 0))
        key = r_square[None, :] - 2.0 * product
        is_positive, is_negative = roles(labels, reference_labels, exclude, self_offset, real, column, inside, EXCLUDED)
        best, where = _keep(best, where, tl.where(is_negative, key, INF), column)
        if FIND_POSITIVE:
            far = tl.where(is_positive, -key, INF)
            best_positive, where_positive = _keep(best_positive, where_positive, far, column)
    tl.store(refused + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), unfit)
    _store_candidates(best, where, None, negative_indices, row, there, KEEP)
    if FIND_POSITIVE:
        _store_candidates(best_positive, where_positive, None, positive_indices, row, there, KEEP_POSITIVE)


@jit
def triplet_keys_kernel(
    anchor, reference, labels, reference_labels, exclude, keys,
    anchors, references, columns, anchor_stride, reference_stride, self_offset,
    DISTANCE: tl.constexpr, EXCLUDED: tl.constexpr, R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The keys [N, P] of all negatives, for a k that no program can keep."""
    ACC: tl.constexpr = keys.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) + tl.zeros([1], tl.int64)
    column = tl.program_id(1) * R + tl.arange(0, R)
    inside = column < references
    square = squares_of_pairs(
        anchor, anchor_stride, row + tl.zeros([R], tl.int64), reference, reference_stride, column.to(tl.int64), columns,
        inside, DISTANCE, ACC, WIDTH, N,
    )  # fmt: skip
    is_positive, is_negative = roles(labels, reference_labels, exclude, self_offset, row, column, inside, EXCLUDED)
    _, near = _keys(square[None, :], is_positive, is_negative)
    here = keys + row[:, None] * references + column[None, :]
    tl.store(here, near, mask=inside[None, :])


LARGE = 1 << 24  # products from which on the tiles of tl.dot are worth their preparation
MOST_KEPT = 32  # negatives a program keeps for each anchor; beyond it the keys are sorted
PROGRAMS = 512  # wanted: about four for each multiprocessor
SORTED = 1 << 24  # keys sorted at a time
# Anchors of a tile of differences, and candidates merged by one program; the interpreter pays for operations alone.
TILE, MERGED = (64, 4096) if backends.INTERPRETING else (4, 256)


def launch_select(
    anchor: Tensor, reference: Tensor | None, labels: Tensor | None, reference_labels: Tensor | None,
    exclude_labels: Tensor | None, self_offset: int, distance: int, k: int, find_positive: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(positive, negative), as amkd_fast/ops/schemas.py describes them."""
    n, d = anchor.shape
    anchor = columns_together(anchor)
    reference = anchor if reference is None else columns_together(reference)
    if reference_labels is None and labels is not None:
        reference_labels = labels
    p = reference.shape[0]
    if p > FAR.value:
        raise ValueError(f"reference.shape[0]={p}: the Triton kernels index at most {FAR.value} rows")
    positive = anchor.new_full((n if find_positive else 0,), -1, dtype=torch.int64)
    negative = anchor.new_full((n, k), -1, dtype=torch.int64)
    if 0 in (n, p, d):
        return positive, negative
    labels, reference_labels, exclude_labels = contiguous(labels, reference_labels, exclude_labels)
    rows = (anchor, reference, labels, reference_labels, exclude_labels)
    excluded = 0 if exclude_labels is None else exclude_labels.shape[1]
    w = width(anchor, reference)
    strides = (d // w, row_stride(anchor) // w, row_stride(reference) // w)
    shared = {"DISTANCE": distance, "WIDTH": w}
    nearest = negative
    if k > MOST_KEPT:
        _sorted_nearest(rows, strides, self_offset, negative, {**shared, "EXCLUDED": excluded})
        if not find_positive:
            return positive, negative
        k, nearest = 1, anchor.new_empty(n, dtype=torch.int64)

    large = d >= 16 and k <= 8 and n * p * d >= LARGE and statistics_dtype(anchor.dtype) == torch.float32
    keep = max(triton.next_power_of_2(k), 4) * (2 if k > 1 else 1) if large else triton.next_power_of_2(k)
    keep_positive = 4 if large else 1
    tile, r = shortened(TILE, n), shortened(64, p)
    a = 64 if large else tile
    splits = min(max(PROGRAMS // triton.cdiv(n, 64 if large else 4), 1), triton.cdiv(p, 4 * r), max(256 // keep, 1))
    kept = {"FIND_POSITIVE": find_positive, "KEEP": keep, "KEEP_POSITIVE": keep_positive}
    found = [None] * 4
    if large or splits > 1:
        sizes = (keep_positive if find_positive else 0, keep)
        for place, size in zip((0, 2), sizes, strict=True):
            if not large:
                found[place] = anchor.new_empty(n * splits * size, dtype=statistics_dtype(anchor.dtype))
            found[place + 1] = anchor.new_empty(n * splits * size, dtype=torch.int32)
    wide = anchor.dtype == torch.float64 or shared["DISTANCE"] == COSINE.value
    with on(anchor):
        refused = _by_product(rows, strides, self_offset, found, splits, r, excluded, shared, kept) if large else None
        triplet_direct_kernel[(triton.cdiv(n, tile), splits)](
            *rows, refused, positive, nearest, *found, n, p, *strides, self_offset, k, EXCLUDED=excluded,
            A=tile, R=r, N=shortened(16 if wide else 32, d), BLOCK=a, **shared, **kept, num_warps=8 if wide else 4,
            **WITHOUT_SPILLS,
        )  # fmt: skip
        if large or splits > 1:
            c, c_positive = triton.next_power_of_2(splits * keep), triton.next_power_of_2(splits * keep_positive)
            together = shortened(MERGED // c, n)
            triplet_merge_kernel[(triton.cdiv(n, together),)](
                anchor, reference, positive, nearest, *found, n, *strides, k, SPLITS=splits, A=together, C=c,
                C_POSITIVE=c_positive, N=shortened(8 if wide else 16, d), **shared, **kept, num_warps=4,
                **WITHOUT_SPILLS,
            )  # fmt: skip
    return positive, negative


def _by_product(rows, strides, self_offset, found, splits, span, excluded, shared, kept) -> Tensor:
    """The candidates by tiles of products into ``found``; returns which (block of anchors, split) were refused."""
    anchor, reference, *labels = rows
    (n, d), p, w = anchor.shape, reference.shape[0], shared["WIDTH"]
    is_batch = anchor is reference
    others = 0 if is_batch else p
    middle = anchor.new_empty(d, dtype=torch.float64)
    centred = anchor.new_empty(n + others, d, dtype=torch.float32)
    square = anchor.new_empty(n + others, dtype=torch.float32)
    columns = shortened(64, d)
    triplet_middle_kernel[(triton.cdiv(d, columns),)](
        reference, middle, p, strides[0], strides[2], N=columns, **shared, num_warps=4
    )  # fmt: skip
    triplet_centre_kernel[(triton.cdiv(n, 16) + triton.cdiv(others, 16),)](
        anchor, reference, middle, centred, square, n, others, *strides, R=16, N=columns, **shared, num_warps=4
    )  # fmt: skip
    refused = anchor.new_empty(triton.cdiv(n, 64) * splits, dtype=torch.int32)
    is_exact = torch.get_float32_matmul_precision() == "highest"
    there = 0 if is_batch else n
    # What keeps every architecture from spilling (tests/gates).
    bound = {"maxnreg": 208} if is_exact else {}
    triplet_dot_kernel[(triton.cdiv(n, 64), splits)](
        centred[:n], centred[there:], square[:n], square[there:], *labels, refused, found[1], found[3],
        n, p, strides[0], self_offset, EXCLUDED=excluded, A=64, R=32 if is_exact else 64, N=32, SPAN=span,
        PRECISION="ieee" if is_exact else "tf32", WIDTH=min(w, 4), **kept, num_warps=8, **bound,
    )  # fmt: skip
    return refused


def _sorted_nearest(rows, strides, self_offset, negative, shared) -> None:
    """The k nearest negatives by a stable sort of all keys, some anchors at a time."""
    anchor, reference, labels, reference_labels, exclude = rows
    n, p, k = anchor.shape[0], reference.shape[0], negative.shape[1]
    step = max(1, SORTED // p)
    for first in range(0, n, step):
        at = slice(first, min(first + step, n))
        keys = anchor.new_empty(at.stop - first, p, dtype=statistics_dtype(anchor.dtype))
        with on(anchor):
            triplet_keys_kernel[(keys.shape[0], triton.cdiv(p, 64))](
                anchor[at], reference, None if labels is None else labels[at], reference_labels,
                None if exclude is None else exclude[at], keys, keys.shape[0], p, *strides,
                self_offset if self_offset < 0 else self_offset + first, R=64, N=32, **shared, num_warps=4,
            )  # fmt: skip
        key, index = keys.sort(dim=1, stable=True)
        negative[at, : min(k, p)] = torch.where(key < INF.value, index, -1)[:, :k]
