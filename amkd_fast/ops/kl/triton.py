"""Triton kernels of the KL family, their launchers and the operators `amkd_fast::kl_forward_triton` and `_backward_`.

A row of logits is one tile [R, N] that stays in registers where it fits, so that student and teacher are read once.
A longer row is several tiles, each with a maximum and sums of its own, that a merge puts together in a fixed order.
Backward is elementwise given the statistics of csrc/kl/kl.h. Launches: forward 1 (small), 2 or 3 (js of long rows: one
more, which reads the logits again, as log m needs both log-sums first), backward 1.

Exponents are in base 2 within the kernels: u = (z_s − max_s) · log2(e)/T for the student, v for the teacher.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.kl.op import FIELDS, TAIL
from amkd_fast.ops.kl.reference import statistics_dtype
from amkd_fast.ops.kl.scalars import DIVERGENCES, REDUCTIONS
from amkd_fast.ops.triton_common import on

LN2 = tl.constexpr(math.log(2.0))
LOG2E = tl.constexpr(1.0 / math.log(2.0))
FORWARD, REVERSE, JS, SOFT_CROSS_ENTROPY = (tl.constexpr(i) for i in range(4))  # DIVERGENCES
SUMS = tl.constexpr(5)  # over rows: labelled, cross-entropy, divergence, and the latter two weighted

# Integers that change from call to call must not each compile a kernel of their own. They carry no divisibility by 16
# either; WIDTH does that: it divides the row strides and the number of classes, which are passed divided by it, so that
# the compiler knows that a vector of WIDTH elements neither straddles the end of a row nor misses its alignment.
_NOT_SPECIALIZED = ["rows", "classes", "student_stride", "teacher_stride", "grad_stride", "ignore_index", "programs"]
_jit = triton.jit(do_not_specialize=_NOT_SPECIALIZED)


@triton.jit
def _load(base, stride, row, column, classes, WIDTH: tl.constexpr, ACC: tl.constexpr, valid=None):
    """Logits [R, N] of rows [R] and columns [N], −inf behind the last class and in rows that are not valid."""
    pointers = base + row[:, None] * stride * WIDTH + column[None, :]
    mask = (column < classes * WIDTH)[None, :]
    if valid is not None:
        mask = mask & valid[:, None]
    return tl.load(pointers, mask=mask, other=float("-inf")).to(ACC)


@triton.jit
def _sweep(student, teacher, scale, DIVERGENCE: tl.constexpr, LABELLED: tl.constexpr):
    """Exponents u and v of a tile [R, N]; its maxima, sums relative to them, and what csrc/kl/kl.h calls top [R]."""
    max_s, max_t = tl.max(student, 1), tl.max(teacher, 1)  # [R]
    # A tile without any class has sums of 0: −inf − (−inf) would make the whole row NaN.
    from_s = student - tl.where(max_s == float("-inf"), 0.0, max_s)[:, None]
    from_t = teacher - tl.where(max_t == float("-inf"), 0.0, max_t)[:, None]
    # 1/T multiplies after the subtraction, which is what keeps the low digits of a large common offset.
    u, v = from_s * scale, from_t * scale  # [R, N]
    e_s, e_t = tl.exp2(u), tl.exp2(v)
    sum_s, sum_t = tl.sum(e_s, 1), tl.sum(e_t, 1)
    top = tl.zeros_like(max_t)
    # A probability of 0 contributes 0, also against a logit of −inf; a NaN has made its sum above NaN.
    if DIVERGENCE == FORWARD:
        cross = tl.sum(e_t * tl.where(e_t > 0.0, v - u, 0.0), 1)
    elif DIVERGENCE == REVERSE:
        # From the student's largest class on, of which csrc/kl/kl.h tells.
        top = tl.max(tl.where(student == max_s[:, None], teacher, float("-inf")), 1)
        top = tl.where(top == float("-inf"), 0.0, top)
        cross = tl.sum(e_s * tl.where(e_s > 0.0, u - (teacher - top[:, None]) * scale, 0.0), 1)
    elif DIVERGENCE == SOFT_CROSS_ENTROPY:
        cross = tl.sum(e_t * tl.where(e_t > 0.0, -u, 0.0), 1)
    else:
        cross = tl.zeros_like(sum_t)
    sum_one = tl.sum(tl.exp2(from_s * LOG2E), 1) if LABELLED else tl.zeros_like(sum_s)
    return u, v, max_s, sum_s, max_t, sum_t, cross, sum_one, top


@triton.jit
def _against_mixture(u, v, log2_ratio, log2_beta, log2_rest):
    """log2(q/m) and log2(p/m) of m = βp + (1−β)q, from log2(q/p): no difference of large logarithms is taken."""
    x = u - v - log2_ratio[:, None] + (log2_rest - log2_beta)  # log2 of (1−β)q / βp; NaN where q = p = 0
    bend = tl.log2(1.0 + tl.exp2(-tl.abs(x)))
    return -log2_rest - tl.maximum(-x, 0.0) - bend, -log2_beta - tl.maximum(x, 0.0) - bend


@triton.jit
def _slip(log2_beta, log2_rest, ACC: tl.constexpr):
    """What the rounding of both logarithms takes from every log2(p/m), that of log2(q/m) included in a row's value.

    All rows have it with the same sign, so that their mean would keep it.
    """
    of_beta = log2_beta - tl.full([], log2_beta, ACC).to(tl.float64)
    of_rest = log2_rest - tl.full([], log2_rest, ACC).to(tl.float64)
    return (of_beta + of_rest * tl.exp2(log2_rest - log2_beta)).to(ACC)


@triton.jit
def _mixture_sums(u, v, log2_ratio, log2_beta, log2_rest, slip):
    """Σ 2^v log2(p/m) and Σ 2^u log2(q/m) of a tile [R, N]."""
    e_s, e_t = tl.exp2(u), tl.exp2(v)
    student, teacher = _against_mixture(u, v, log2_ratio, log2_beta, log2_rest)
    cross = tl.sum(e_t * tl.where(e_t > 0.0, teacher, 0.0), 1)
    if cross.dtype != tl.float64:  # where nothing was rounded
        cross -= slip * tl.sum(e_t, 1)
    return cross, tl.sum(e_s * tl.where(e_s > 0.0, student, 0.0), 1)


@triton.jit
def times(factor, value):
    """The product; what a factor of 0 hides may be NaN."""
    return tl.where(factor == 0.0, 0.0, factor * value)


@triton.jit
def _finish_rows(
    row, max_s, sum_s, max_t, sum_t, cross, inner, sum_one, top,
    student, student_stride, weight, labels, ce_weight, loss, stats,
    rows, classes, ignore_index, scale, row_scale, kl_factor, beta,
    WIDTH: tl.constexpr, DIVERGENCE: tl.constexpr, PER_ROW: tl.constexpr,
):  # fmt: skip
    """Statistics and losses of rows [R] from their sums; returns the SUMS of each row, 0 behind the last one."""
    valid = row < rows
    nan = float("nan")
    sum_s, sum_t = tl.where(sum_s > 0.0, sum_s, nan), tl.where(sum_t > 0.0, sum_t, nan)  # no class at all
    log_s, log_t = tl.log2(sum_s) * LN2, tl.log2(sum_t) * LN2
    # One logarithm of the ratio is exact where both sums are large; the difference of two is not.
    if DIVERGENCE == FORWARD:
        value = (cross / sum_t + tl.log2(sum_s / sum_t)) * LN2
    elif DIVERGENCE == REVERSE:
        inner = cross / sum_s * LN2
        from_top = tl.where(max_t == float("-inf"), 0.0, max_t) - top
        value = inner + (from_top * scale + tl.log2(sum_t / sum_s)) * LN2
        max_t = top
    elif DIVERGENCE == SOFT_CROSS_ENTROPY:
        value = cross / sum_t * LN2 + log_s
    else:
        inner = inner / sum_s * LN2
        value = beta * (cross / sum_t * LN2) + (1.0 - beta) * inner
    value = row_scale * value
    factor = 1.0
    if weight is not None:
        factor = tl.load(weight + row, mask=valid, other=0.0)
        value = tl.where(factor == 0.0, 0.0, value)  # what has weight 0 may be NaN

    tl.store(stats + row, max_s, mask=valid)
    tl.store(stats + rows + row, log_s, mask=valid)
    tl.store(stats + 2 * rows + row, max_t, mask=valid)
    tl.store(stats + 3 * rows + row, log_t, mask=valid)
    tl.store(stats + 4 * rows + row, inner, mask=valid)
    weighted = value * factor
    if PER_ROW:
        tl.store(loss + row, times(kl_factor, weighted), mask=valid)

    labelled = tl.zeros_like(value)
    ce = tl.zeros_like(value)
    weighted_ce = tl.zeros_like(value)
    log_one = tl.zeros_like(value)
    if labels is not None:
        log_one = tl.log2(tl.where(sum_one > 0.0, sum_one, nan)) * LN2
        label = tl.load(labels + row, mask=valid, other=0).to(tl.int64)
        counts = valid & (label != ignore_index)
        inside = (label >= 0) & (label < classes * WIDTH)
        chosen = tl.load(student + row * student_stride * WIDTH + label, mask=counts & inside, other=0.0)
        ce = log_one - (chosen.to(value.dtype) - max_s)
        # Looking at a label would stall the host, so one out of range shows as a NaN loss.
        ce = tl.where(counts, tl.where(inside, ce, nan), 0.0)
        labelled = tl.where(counts, 1.0, labelled)
        weighted_ce = ce
        if ce_weight is not None:
            ce_scale = tl.load(ce_weight + row, mask=counts, other=0.0)
            ce = tl.where(ce_scale == 0.0, 0.0, ce)
            weighted_ce = ce * ce_scale
    tl.store(stats + 5 * rows + row, log_one, mask=valid)
    return labelled, ce, tl.where(valid, value, 0.0), tl.where(valid, weighted, 0.0), weighted_ce


@triton.jit
def _store_sums(
    labelled, ce, value, weighted, weighted_ce, sums, loss, stats, rows, kl_factor, ce_factor,
    ALONE: tl.constexpr, PER_ROW: tl.constexpr,
):  # fmt: skip
    """A program's SUMS over its rows: as the call's scalars where it is the only one, else for `kl_totals_kernel`."""
    if ALONE:
        count = tl.maximum(labelled, 1.0)
        tail = stats + 6 * rows
        tl.store(tail, labelled)
        tl.store(tail + 1, ce / count)
        tl.store(tail + 2, value / tl.maximum(rows, 1).to(value.dtype))
        if not PER_ROW:
            tl.store(loss, times(kl_factor, weighted) + times(ce_factor, weighted_ce / count))
    else:
        programs = tl.num_programs(0)
        sums += tl.program_id(0)
        tl.store(sums, labelled)
        tl.store(sums + programs, ce)
        tl.store(sums + 2 * programs, value)
        tl.store(sums + 3 * programs, weighted)
        tl.store(sums + 4 * programs, weighted_ce)


@_jit
def kl_rows_kernel(
    student, teacher, weight, labels, ce_weight, loss, stats, sums,
    rows, classes, student_stride, teacher_stride, ignore_index,
    scale: tl.float64, row_scale: tl.float64, kl_factor: tl.float64, ce_factor: tl.float64,
    beta: tl.float64, log2_beta: tl.float64, log2_rest: tl.float64,
    R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
    DIVERGENCE: tl.constexpr, PER_ROW: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Whole rows, R at a time: statistics, losses and the program's SUMS."""
    ACC: tl.constexpr = stats.dtype.element_ty
    # Without the annotation a Python float would come as fp32, without `full` it would lift everything to fp64.
    scale, row_scale, kl_factor = tl.full([], scale, ACC), tl.full([], row_scale, ACC), tl.full([], kl_factor, ACC)
    ce_factor, beta = tl.full([], ce_factor, ACC), tl.full([], beta, ACC)
    slip = _slip(log2_beta, log2_rest, ACC)
    log2_beta, log2_rest = tl.full([], log2_beta, ACC), tl.full([], log2_rest, ACC)
    rows = rows.to(tl.int64)
    column = tl.arange(0, N)
    labelled = tl.zeros([R], ACC)
    ce = tl.zeros([R], ACC)
    value = tl.zeros([R], ACC)
    weighted = tl.zeros([R], ACC)
    weighted_ce = tl.zeros([R], ACC)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = tile * R + tl.arange(0, R).to(tl.int64)  # [R]
        # Rows behind the last one repeat it: no mask on the rows of a load, no NaN from nothing.
        real = tl.minimum(row, rows - 1)
        s = _load(student, student_stride, real, column, classes, WIDTH, ACC)  # [R, N]
        t = _load(teacher, teacher_stride, real, column, classes, WIDTH, ACC)  # [R, N]
        u, v, max_s, sum_s, max_t, sum_t, cross, sum_one, top = _sweep(s, t, scale, DIVERGENCE, labels is not None)
        inner = tl.zeros_like(cross)
        if DIVERGENCE == JS:
            cross, inner = _mixture_sums(u, v, tl.log2(sum_s / sum_t), log2_beta, log2_rest, slip)
        a, b, c, d, e = _finish_rows(
            row, max_s, sum_s, max_t, sum_t, cross, inner, sum_one, top,
            student, student_stride, weight, labels, ce_weight, loss, stats,
            rows, classes, ignore_index, scale, row_scale, kl_factor, beta, WIDTH, DIVERGENCE, PER_ROW,
        )  # fmt: skip
        labelled += a
        ce += b
        value += c
        weighted += d
        weighted_ce += e
    _store_sums(
        tl.sum(labelled, 0), tl.sum(ce, 0), tl.sum(value, 0), tl.sum(weighted, 0), tl.sum(weighted_ce, 0),
        sums, loss, stats, rows, kl_factor, ce_factor, ALONE, PER_ROW,
    )  # fmt: skip


@_jit
def kl_chunk_kernel(
    student, teacher, parts, rows, classes, student_stride, teacher_stride, scale: tl.float64,
    N: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr, DIVERGENCE: tl.constexpr, LABELLED: tl.constexpr,
):  # fmt: skip
    """N columns of one row: their maxima and sums, parts[field, row, chunk]."""
    ACC: tl.constexpr = parts.dtype.element_ty
    rows = rows.to(tl.int64)
    row = (tl.program_id(0) // CHUNKS).to(tl.int64) + tl.arange(0, 1)  # [1]
    column = (tl.program_id(0) % CHUNKS) * N + tl.arange(0, N)  # [N]
    s = _load(student, student_stride, row, column, classes, WIDTH, ACC)  # [1, N]
    t = _load(teacher, teacher_stride, row, column, classes, WIDTH, ACC)  # [1, N]
    scale = tl.full([], scale, ACC)
    _, _, max_s, sum_s, max_t, sum_t, cross, sum_one, top = _sweep(s, t, scale, DIVERGENCE, LABELLED)
    here = parts + row * CHUNKS + tl.program_id(0) % CHUNKS
    field = rows * CHUNKS
    tl.store(here, max_s)
    tl.store(here + field, sum_s)
    tl.store(here + 2 * field, max_t)
    tl.store(here + 3 * field, sum_t)
    tl.store(here + 4 * field, cross)
    tl.store(here + 5 * field, sum_one)
    if DIVERGENCE == REVERSE:
        tl.store(here + 6 * field, top)


@triton.jit
def _merge(parts, row, rows, scale, CHUNKS: tl.constexpr, C: tl.constexpr, DIVERGENCE: tl.constexpr):
    """The maxima and sums of rows [R] from those of their chunks; CHUNKS padded to C."""
    chunk = tl.arange(0, C)
    here = parts + row[:, None] * CHUNKS + chunk[None, :]  # [R, C]
    there = (chunk < CHUNKS)[None, :]
    field = rows * CHUNKS
    part_s = tl.load(here, mask=there, other=float("-inf"))
    part_t = tl.load(here + 2 * field, mask=there, other=float("-inf"))
    sum_s = tl.load(here + field, mask=there, other=0.0)
    sum_t = tl.load(here + 3 * field, mask=there, other=0.0)
    cross = tl.load(here + 4 * field, mask=there, other=0.0)
    sum_one = tl.load(here + 5 * field, mask=there, other=0.0)
    max_s, max_t = tl.max(part_s, 1), tl.max(part_t, 1)  # [R]
    from_s = part_s - max_s[:, None]
    u, v = from_s * scale, (part_t - max_t[:, None]) * scale
    e_s, e_t = tl.exp2(u), tl.exp2(v)  # [R, C]
    top = tl.zeros_like(max_t)
    # The differences in `cross` were taken from the chunk's own maxima, which the shift of both moves.
    if DIVERGENCE == FORWARD:
        cross = e_t * tl.where(e_t > 0.0, cross + sum_t * (v - u), 0.0)
    elif DIVERGENCE == REVERSE:
        part_top = tl.load(here + 6 * field, mask=there, other=0.0)
        top = tl.max(tl.where(part_s == max_s[:, None], part_top, float("-inf")), 1)
        top = tl.where(top == float("-inf"), 0.0, top)
        cross = e_s * tl.where(e_s > 0.0, cross + sum_s * (u - (part_top - top[:, None]) * scale), 0.0)
    elif DIVERGENCE == SOFT_CROSS_ENTROPY:
        cross = e_t * tl.where(e_t > 0.0, cross - sum_t * u, 0.0)
    sum_s, sum_t = tl.sum(e_s * sum_s, 1), tl.sum(e_t * sum_t, 1)
    return max_s, sum_s, max_t, sum_t, tl.sum(cross, 1), tl.sum(tl.exp2(from_s * LOG2E) * sum_one, 1), top


@_jit
def kl_chunk_mixture_kernel(
    student, teacher, parts, mixture, rows, classes, student_stride, teacher_stride,
    scale: tl.float64, log2_beta: tl.float64, log2_rest: tl.float64,
    N: tl.constexpr, CHUNKS: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """js, second sweep over N columns of one row: mixture[side, row, chunk]."""
    ACC: tl.constexpr = parts.dtype.element_ty
    slip = _slip(log2_beta, log2_rest, ACC)
    scale, log2_beta, log2_rest = tl.full([], scale, ACC), tl.full([], log2_beta, ACC), tl.full([], log2_rest, ACC)
    rows = rows.to(tl.int64)
    row = (tl.program_id(0) // CHUNKS).to(tl.int64) + tl.arange(0, 1)  # [1]
    column = (tl.program_id(0) % CHUNKS) * N + tl.arange(0, N)  # [N]
    s = _load(student, student_stride, row, column, classes, WIDTH, ACC)  # [1, N]
    t = _load(teacher, teacher_stride, row, column, classes, WIDTH, ACC)  # [1, N]
    max_s, sum_s, max_t, sum_t, _, _, _ = _merge(parts, row, rows, scale, CHUNKS, C, JS)
    u, v = (s - max_s[:, None]) * scale, (t - max_t[:, None]) * scale
    cross, inner = _mixture_sums(u, v, tl.log2(sum_s / sum_t), log2_beta, log2_rest, slip)
    here = mixture + row * CHUNKS + tl.program_id(0) % CHUNKS
    tl.store(here, cross)
    tl.store(here + rows * CHUNKS, inner)


@_jit
def kl_merge_kernel(
    student, weight, labels, ce_weight, loss, stats, sums, parts, mixture,
    rows, classes, student_stride, ignore_index,
    scale: tl.float64, row_scale: tl.float64, kl_factor: tl.float64, ce_factor: tl.float64, beta: tl.float64,
    R: tl.constexpr, CHUNKS: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr,
    DIVERGENCE: tl.constexpr, PER_ROW: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Long rows, R at a time, from their chunks: what `kl_rows_kernel` gives."""
    ACC: tl.constexpr = stats.dtype.element_ty
    scale, row_scale, kl_factor = tl.full([], scale, ACC), tl.full([], row_scale, ACC), tl.full([], kl_factor, ACC)
    ce_factor, beta = tl.full([], ce_factor, ACC), tl.full([], beta, ACC)
    rows = rows.to(tl.int64)
    labelled = tl.zeros([R], ACC)
    ce = tl.zeros([R], ACC)
    value = tl.zeros([R], ACC)
    weighted = tl.zeros([R], ACC)
    weighted_ce = tl.zeros([R], ACC)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = tile * R + tl.arange(0, R).to(tl.int64)  # [R]
        real = tl.minimum(row, rows - 1)
        max_s, sum_s, max_t, sum_t, cross, sum_one, top = _merge(parts, real, rows, scale, CHUNKS, C, DIVERGENCE)
        inner = tl.zeros_like(cross)
        if DIVERGENCE == JS:
            chunk = tl.arange(0, C)
            here = mixture + real[:, None] * CHUNKS + chunk[None, :]  # [R, C]
            there = (chunk < CHUNKS)[None, :]
            cross = tl.sum(tl.load(here, mask=there, other=0.0), 1)
            inner = tl.sum(tl.load(here + rows * CHUNKS, mask=there, other=0.0), 1)
        a, b, c, d, e = _finish_rows(
            row, max_s, sum_s, max_t, sum_t, cross, inner, sum_one, top,
            student, student_stride, weight, labels, ce_weight, loss, stats,
            rows, classes, ignore_index, scale, row_scale, kl_factor, beta, WIDTH, DIVERGENCE, PER_ROW,
        )  # fmt: skip
        labelled += a
        ce += b
        value += c
        weighted += d
        weighted_ce += e
    _store_sums(
        tl.sum(labelled, 0), tl.sum(ce, 0), tl.sum(value, 0), tl.sum(weighted, 0), tl.sum(weighted_ce, 0),
        sums, loss, stats, rows, kl_factor, ce_factor, ALONE, PER_ROW,
    )  # fmt: skip


@_jit
def kl_totals_kernel(
    sums, loss, stats, rows, programs, kl_factor: tl.float64, ce_factor: tl.float64,
    P: tl.constexpr, PER_ROW: tl.constexpr,
):  # fmt: skip
    """The call's scalars from the SUMS of all programs, in one program and so in a fixed order."""
    ACC: tl.constexpr = stats.dtype.element_ty
    kl_factor, ce_factor = tl.full([], kl_factor, ACC), tl.full([], ce_factor, ACC)
    program = tl.arange(0, P)
    here, there = sums + program, program < programs
    labelled = tl.sum(tl.load(here, mask=there, other=0.0), 0)
    ce = tl.sum(tl.load(here + programs, mask=there, other=0.0), 0)
    value = tl.sum(tl.load(here + 2 * programs, mask=there, other=0.0), 0)
    weighted = tl.sum(tl.load(here + 3 * programs, mask=there, other=0.0), 0)
    weighted_ce = tl.sum(tl.load(here + 4 * programs, mask=there, other=0.0), 0)
    _store_sums(
        labelled, ce, value, weighted, weighted_ce, sums, loss, stats, rows.to(tl.int64), kl_factor, ce_factor,
        True, PER_ROW,
    )  # fmt: skip


@_jit
def kl_grad_kernel(
    grad_loss, student, teacher, weight, labels, ce_weight, stats, grad,
    rows, classes, student_stride, teacher_stride, grad_stride, ignore_index,
    scale: tl.float64, kl_factor: tl.float64, ce_factor: tl.float64, log2_beta: tl.float64, log2_rest: tl.float64,
    R: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr, DIVERGENCE: tl.constexpr,
):  # fmt: skip
    """A tile [R, N] of the student's gradient; `kl_factor` has the row scale and 1/T in it."""
    ACC: tl.constexpr = stats.dtype.element_ty
    scale, kl_factor, ce_factor = tl.full([], scale, ACC), tl.full([], kl_factor, ACC), tl.full([], ce_factor, ACC)
    log2_beta, log2_rest = tl.full([], log2_beta, ACC), tl.full([], log2_rest, ACC)
    rows = rows.to(tl.int64)
    row = (tl.program_id(0) // CHUNKS).to(tl.int64) * R + tl.arange(0, R)  # [R]
    valid = row < rows
    row = tl.minimum(row, rows - 1)
    column = (tl.program_id(0) % CHUNKS) * N + tl.arange(0, N)  # [N]
    # Where the gradient goes over the student's logits nobody may read those of another row.
    s = _load(student, student_stride, row, column, classes, WIDTH, ACC, valid)  # [R, N]
    t = _load(teacher, teacher_stride, row, column, classes, WIDTH, ACC, valid)  # [R, N]

    from_s = s - tl.load(stats + row)[:, None]
    log_s, log_t = tl.load(stats + rows + row) * LOG2E, tl.load(stats + 3 * rows + row) * LOG2E  # [R]
    from_t = t - tl.load(stats + 2 * rows + row)[:, None]
    u, v = from_s * scale, from_t * scale  # [R, N]
    q = tl.exp2(u - log_s[:, None])
    if DIVERGENCE == FORWARD or DIVERGENCE == SOFT_CROSS_ENTROPY:  # noqa: SIM109 - Triton has no `in`
        core = q - tl.exp2(v - log_t[:, None])
    else:
        # q · (log(q/p) − L), both from the student's largest class on, or (1−β) q · (log(q/m) − KL(q‖m))
        if DIVERGENCE == REVERSE:
            log2_quotient = (from_s - from_t) * scale
        else:
            log2_quotient, _ = _against_mixture(u, v, log_s - log_t, log2_beta, log2_rest)
            q *= tl.exp2(log2_rest)
        inner = tl.load(stats + 4 * rows + row)[:, None]
        core = q * tl.where(q > 0.0, log2_quotient * LN2 - inner, 0.0)

    upstream = tl.load(grad_loss + row * grad_stride).to(ACC)  # [R]
    factor = tl.zeros_like(upstream) + kl_factor
    if weight is not None:
        factor *= tl.load(weight + row)
    result = times(factor[:, None], upstream[:, None] * core)
    if labels is not None:
        label = tl.load(labels + row).to(tl.int64)
        factor = tl.zeros_like(upstream) + ce_factor
        if ce_weight is not None:
            factor *= tl.load(ce_weight + row)
        inside = (label >= 0) & (label < classes * WIDTH)
        factor = tl.where((label == ignore_index) | (factor == 0.0), 0.0, tl.where(inside, factor, float("nan")))
        upstream /= tl.maximum(tl.load(stats + 6 * rows), 1.0)
        one = tl.exp2(from_s * LOG2E - (tl.load(stats + 5 * rows + row) * LOG2E)[:, None])
        slope = one - tl.where(column[None, :] == label[:, None], 1.0, 0.0)
        result += times(factor[:, None], upstream[:, None] * slope)
    pointers = grad + row[:, None] * classes * WIDTH + column[None, :]
    tl.store(pointers, result, mask=valid[:, None] & (column < classes * WIDTH)[None, :])


LONGEST_TILE = {torch.float64: 2048}  # elements of a row that one program holds; 4096 elsewhere
PARTS = 7  # numbers that a chunk leaves; the last one of the reverse divergence alone
MOST_PROGRAMS = 4096  # which is also how many one program can add up in kl_totals_kernel
JS_NUMBER = DIVERGENCES.index("js")


def forward_plan(rows: int, classes: int, dtype: torch.dtype, divergence: int) -> dict:
    """Tile sizes by shape and dtype alone, so that a result does not depend on the GPU."""
    longest = LONGEST_TILE.get(dtype, 4096)
    if classes > longest:
        chunks = triton.cdiv(classes, longest)
        padded = triton.next_power_of_2(chunks)
        merged = min(max(512 // padded, 1), triton.next_power_of_2(rows))  # rows a program merges at a time
        alone = rows * padded <= 8192
        tiles = triton.cdiv(rows, merged)
        return {
            "N": longest,
            "CHUNKS": chunks,
            "C": padded,
            "R": merged,
            "ALONE": alone,
            "programs": _programs(tiles, alone),
        }
    n = max(triton.next_power_of_2(classes), 8)
    # What one program reads in a few tiles needs no second launch, which would cost more than the idle multiprocessors.
    alone = rows * n <= 8 * longest
    # 16 warps have 128 registers a thread, and js keeps more values alive than that has room for.
    tile = longest // 4 if not alone else longest if divergence == JS_NUMBER else 2 * longest
    r = min(max(tile // n, 1), triton.next_power_of_2(rows))
    return {"N": n, "CHUNKS": 1, "R": r, "ALONE": alone, "programs": _programs(triton.cdiv(rows, r), alone)}


def _programs(tiles: int, alone: bool) -> int:
    return 1 if alone else min(tiles, MOST_PROGRAMS)


def backward_plan(rows: int, classes: int, dtype: torch.dtype) -> dict:
    """Tiles [R, N] of the gradient."""
    tile = LONGEST_TILE.get(dtype, 4096) // 2
    n = min(max(triton.next_power_of_2(classes), 8), tile)
    return {"N": n, "R": min(tile // n, triton.next_power_of_2(rows)), "CHUNKS": triton.cdiv(classes, n)}


def warps(elements: int, dtype: torch.dtype) -> int:
    """Warps for a tile: 64 bytes of each tensor a thread keep loads in flight and let few threads repeat row work."""
    return min(max(elements * dtype.itemsize // 2048, 1), 16)


def width(classes: int, student: Tensor, teacher: Tensor) -> int:
    """The largest vector, up to 16 bytes, that divides rows and row strides evenly."""
    return math.gcd(16 // student.element_size(), classes, _row_stride(student), _row_stride(teacher))


def _row_stride(logits: Tensor) -> int:
    return logits.stride(0) if logits.shape[0] > 1 else 0


def _columns_together(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def over_rows(factor: float, rows: int, reduction: int) -> tuple[float, bool]:
    """The factor of a sum over the rows, and whether there is none: csrc/kl/row_loss.h."""
    name = REDUCTIONS[reduction]
    return factor / max(rows, 1) if name == "mean" else factor, name == "none"


def launch_forward(
    student, teacher, weight, labels, ce_weight,
    temperature, divergence, beta, row_scale, kl_factor, ce_factor, ignore_index, reduction,
):  # fmt: skip
    """(loss, stats), as csrc/kl/kl.h describes them."""
    rows, classes = student.shape
    kl_factor, per_row = over_rows(kl_factor, rows, reduction)
    dtype = statistics_dtype(student.dtype)
    if rows == 0:
        return student.new_zeros((0,) if per_row else (), dtype=dtype), student.new_zeros(TAIL, dtype=dtype)
    student, teacher = _columns_together(student), _columns_together(teacher)
    weight, labels, ce_weight = (None if x is None else x.contiguous() for x in (weight, labels, ce_weight))
    loss = student.new_empty((rows,) if per_row else (), dtype=dtype)
    stats = student.new_empty(FIELDS * rows + TAIL, dtype=dtype)

    plan = forward_plan(rows, classes, student.dtype, divergence)
    n, chunks, alone, programs = plan["N"], plan["CHUNKS"], plan["ALONE"], plan["programs"]
    w = width(classes, student, teacher)
    shape = (rows, classes // w, _row_stride(student) // w, _row_stride(teacher) // w)
    scale = 1.0 / (math.log(2.0) * temperature)
    mixture = (beta, math.log2(beta), math.log2(1.0 - beta))
    sums = None if alone else student.new_empty(SUMS.value * programs, dtype=dtype)
    with on(student):
        if chunks == 1:
            kl_rows_kernel[(programs,)](
                student, teacher, weight, labels, ce_weight, loss, stats, sums, *shape, ignore_index,
                scale, row_scale, kl_factor, ce_factor, *mixture,
                R=plan["R"], N=n, WIDTH=w, DIVERGENCE=divergence, PER_ROW=per_row, ALONE=alone,
                num_warps=warps(plan["R"] * n, student.dtype),
            )  # fmt: skip
        else:
            parts = student.new_empty(PARTS * rows * chunks, dtype=dtype)
            kl_chunk_kernel[(rows * chunks,)](
                student, teacher, parts, *shape, scale, N=n, CHUNKS=chunks, WIDTH=w, DIVERGENCE=divergence,
                LABELLED=labels is not None, num_warps=warps(n, student.dtype),
            )  # fmt: skip
            mixture_parts = None
            if divergence == JS_NUMBER:
                mixture_parts = student.new_empty(2 * rows * chunks, dtype=dtype)
                kl_chunk_mixture_kernel[(rows * chunks,)](
                    student, teacher, parts, mixture_parts, *shape, scale, *mixture[1:],
                    N=n, CHUNKS=chunks, C=plan["C"], WIDTH=w, num_warps=warps(n, student.dtype),
                )  # fmt: skip
            kl_merge_kernel[(programs,)](
                student, weight, labels, ce_weight, loss, stats, sums, parts, mixture_parts, *shape[:3], ignore_index,
                scale, row_scale, kl_factor, ce_factor, beta,
                R=plan["R"], CHUNKS=chunks, C=plan["C"], WIDTH=w, DIVERGENCE=divergence, PER_ROW=per_row, ALONE=alone,
                num_warps=4,
            )  # fmt: skip
        if not alone:
            kl_totals_kernel[(1,)](
                sums, loss, stats, rows, programs, kl_factor, ce_factor, P=MOST_PROGRAMS, PER_ROW=per_row, num_warps=8
            )
    return loss, stats


def launch_backward(grad_loss, student, *rest):
    """The student's gradient."""
    # The interpreter truncates where a GPU rounds to bf16, so there the kernel stores fp32 and torch rounds.
    truncates = backends.INTERPRETING and student.dtype == torch.bfloat16
    grad = student.new_empty(student.shape, dtype=torch.float32 if truncates else student.dtype)
    _write_gradient(grad, grad_loss, student, *rest)
    return grad.to(student.dtype)


def launch_overwrite(grad_loss, student, *rest):
    """The same, over the student's logits: a program has read what it writes over."""
    if backends.INTERPRETING and student.dtype == torch.bfloat16:
        student.copy_(launch_backward(grad_loss, student, *rest))
    else:
        _write_gradient(student, grad_loss, student, *rest)


def _write_gradient(
    grad, grad_loss, student, teacher, weight, labels, ce_weight, stats,
    temperature, divergence, beta, row_scale, kl_factor, ce_factor, ignore_index, reduction,
):  # fmt: skip
    rows, classes = student.shape
    kl_factor, per_row = over_rows(kl_factor, rows, reduction)
    if rows == 0:
        return
    student, teacher = _columns_together(student), _columns_together(teacher)
    weight, labels, ce_weight = (None if x is None else x.contiguous() for x in (weight, labels, ce_weight))
    plan = backward_plan(rows, classes, student.dtype)
    w = width(classes, student, teacher)
    with on(student):
        kl_grad_kernel[(triton.cdiv(rows, plan["R"]) * plan["CHUNKS"],)](
            grad_loss, student, teacher, weight, labels, ce_weight, stats, grad,
            rows, classes // w, _row_stride(student) // w, _row_stride(teacher) // w,
            grad_loss.stride(0) if per_row else 0, ignore_index,
            1.0 / (math.log(2.0) * temperature), kl_factor * row_scale / temperature, ce_factor,
            math.log2(beta), math.log2(1.0 - beta),
            **plan, WIDTH=w, DIVERGENCE=divergence, num_warps=warps(plan["R"] * plan["N"], student.dtype),
        )  # fmt: skip
