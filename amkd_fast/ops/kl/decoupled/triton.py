"""Triton kernels of decoupled distillation and the operators `amkd_fast::kl_decoupled_forward_triton`, `_backward_`.

Tiles [R, N] of whole rows as in the other kernels of the family, whose sums these share; the target's logit is −inf in
them. A row that no tile holds takes several trips, whose sums merge. Launches: forward 1 (small) or 2, backward 1.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from amkd_fast import backends
from amkd_fast.ops.kl.decoupled.op import FIELDS
from amkd_fast.ops.kl.reference import statistics_dtype
from amkd_fast.ops.kl.triton import (
    FORWARD,
    LN2,
    LOG2E,
    LONGEST_TILE,
    MOST_PROGRAMS,
    _columns_together,
    _load,
    _row_stride,
    _sweep,
    backward_plan,
    over_rows,
    times,
    warps,
    width,
)
from amkd_fast.ops.triton_common import on

# For the reason given in ops/kl/triton.py.
_jit = triton.jit(do_not_specialize=["rows", "classes", "student_stride", "teacher_stride", "grad_stride", "programs"])


@triton.jit
def _others(
    student, teacher, student_stride, teacher_stride, row, column, label, classes, scale,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Maxima and sums [R] over the columns [N] other than the target."""
    is_target = column[None, :] == label[:, None]
    s = tl.where(is_target, float("-inf"), _load(student, student_stride, row, column, classes, WIDTH, ACC))
    t = tl.where(is_target, float("-inf"), _load(teacher, teacher_stride, row, column, classes, WIDTH, ACC))
    _, _, max_s, sum_s, max_t, sum_t, cross, _, _ = _sweep(s, t, scale, FORWARD, False)
    return max_s, sum_s, max_t, sum_t, cross


@triton.jit
def _moved(maximum, to, scale):
    """The exponent by which sums relative to a maximum shrink beside a larger one; −inf where there are no sums."""
    return tl.where(maximum == float("-inf"), float("-inf"), (maximum - to) * scale)


@triton.jit
def _merge(max_s, sum_s, max_t, sum_t, cross, other_max_s, other_sum_s, other_max_t, other_sum_t, other_cross, scale):
    """The maxima and sums of two ranges of columns together."""
    top_s, top_t = tl.maximum(max_s, other_max_s), tl.maximum(max_t, other_max_t)
    u, v = _moved(max_s, top_s, scale), _moved(max_t, top_t, scale)
    other_u, other_v = _moved(other_max_s, top_s, scale), _moved(other_max_t, top_t, scale)
    e_t, other_e_t = tl.exp2(v), tl.exp2(other_v)
    # The differences in `cross` were taken from the ranges' own maxima.
    cross = e_t * tl.where(e_t > 0.0, cross + sum_t * (v - u), 0.0)
    cross += other_e_t * tl.where(other_e_t > 0.0, other_cross + other_sum_t * (other_v - other_u), 0.0)
    sum_s = tl.exp2(u) * sum_s + tl.exp2(other_u) * other_sum_s
    return top_s, sum_s, top_t, e_t * sum_t + other_e_t * other_sum_t, cross


@triton.jit
def _log_odds(target, maximum, log_sum, inverse_t, alone, torn):
    """Log-odds of the target against the rest; 0 where there is no rest, NaN where there is no distribution."""
    odds = (target - maximum) * inverse_t - log_sum
    odds = tl.where(torn | (odds == float("inf")), float("nan"), odds)
    return tl.where(alone, target - target, odds)


@triton.jit
def _binary(odds):
    """Probabilities of target and rest, and their logarithms."""
    e = tl.exp2(-tl.abs(odds) * LOG2E)
    above = 1.0 + e
    likely = 1.0 / above
    unlikely = e * likely
    # log(1 + e) to all digits: what rounding took from the sum comes back as the slope's share.
    log = tl.log2(above) * LN2 + (e - (above - 1.0)) * likely
    log_target, log_rest = tl.minimum(odds, 0.0) - log, tl.minimum(-odds, 0.0) - log
    positive = odds > 0.0
    return tl.where(positive, likely, unlikely), tl.where(positive, unlikely, likely), log_target, log_rest


@triton.jit
def _finish_rows(
    row, max_s, sum_s, max_t, sum_t, cross, target_s, target_t, weight, loss, stats,
    rows, inverse_t, target_factor, other_factor, factor, PER_ROW: tl.constexpr,
):  # fmt: skip
    """Statistics and losses of rows [R] from their sums; returns the weighted values, 0 behind the last row."""
    valid = row < rows
    no_s, no_t = sum_s == 0.0, sum_t == 0.0
    alone, torn = no_s & no_t, no_s ^ no_t
    max_s, max_t = tl.where(max_s == float("-inf"), 0.0, max_s), tl.where(max_t == float("-inf"), 0.0, max_t)
    sum_s, sum_t = tl.where(no_s, 1.0, sum_s), tl.where(no_t, 1.0, sum_t)
    log_s, log_t = tl.log2(sum_s) * LN2, tl.log2(sum_t) * LN2
    odds_s = _log_odds(target_s, max_s, log_s, inverse_t, alone, torn)
    odds_t = _log_odds(target_t, max_t, log_t, inverse_t, alone, torn)
    q, q_rest, log_q, log_q_rest = _binary(odds_s)
    p, p_rest, log_p, log_p_rest = _binary(odds_t)
    # A probability of 0 contributes 0; a NaN stays one.
    binary = p * tl.where(p > 0.0, log_p - log_q, 0.0) + p_rest * tl.where(p_rest > 0.0, log_p_rest - log_q_rest, 0.0)
    # One logarithm of the ratio is exact where both sums are large; the difference of two is not.
    others = (cross / sum_t + tl.log2(sum_s / sum_t)) * LN2
    value = target_factor * binary + other_factor * others
    # Of two probabilities near 1 the difference is that of what is missing from 1.
    slope = tl.where(odds_s + odds_t > 0.0, p_rest - q_rest, q - p)

    tl.store(stats + row, max_s, mask=valid)
    tl.store(stats + rows + row, log_s, mask=valid)
    tl.store(stats + 2 * rows + row, max_t, mask=valid)
    tl.store(stats + 3 * rows + row, log_t, mask=valid)
    tl.store(stats + 4 * rows + row, slope, mask=valid)
    tl.store(stats + 5 * rows + row, value, mask=valid)
    if weight is not None:
        value = times(tl.load(weight + row, mask=valid, other=0.0), value)
    if PER_ROW:
        tl.store(loss + row, times(factor, value), mask=valid)
    return tl.where(valid, value, 0.0)


@_jit
def decoupled_rows_kernel(
    student, teacher, labels, weight, loss, stats, sums, rows, classes, student_stride, teacher_stride,
    inverse_t: tl.float64, target_factor: tl.float64, other_factor: tl.float64, factor: tl.float64,
    R: tl.constexpr, N: tl.constexpr, TRIPS: tl.constexpr, WIDTH: tl.constexpr, PER_ROW: tl.constexpr,
    ALONE: tl.constexpr,
):  # fmt: skip
    """Rows, R at a time: statistics, losses, and the sum over the program's rows."""
    ACC: tl.constexpr = stats.dtype.element_ty
    # Without the annotation a Python float would come as fp32, without `full` it would lift everything to fp64.
    inverse_t, factor = tl.full([], inverse_t, ACC), tl.full([], factor, ACC)
    target_factor, other_factor = tl.full([], target_factor, ACC), tl.full([], other_factor, ACC)
    scale = inverse_t * LOG2E
    rows = rows.to(tl.int64)
    column = tl.arange(0, N)
    total = tl.zeros([R], ACC)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = tile * R + tl.arange(0, R).to(tl.int64)  # [R]
        # Rows behind the last one repeat it: no mask on the rows of a load, no NaN from nothing.
        real = tl.minimum(row, rows - 1)
        label = tl.load(labels + real).to(tl.int64)
        max_s, sum_s, max_t, sum_t, cross = _others(
            student, teacher, student_stride, teacher_stride, real, column, label, classes, scale, WIDTH, ACC
        )
        for trip in range(1, TRIPS):
            a, b, c, d, e = _others(
                student, teacher, student_stride, teacher_stride, real, trip * N + column, label, classes, scale,
                WIDTH, ACC,
            )  # fmt: skip
            max_s, sum_s, max_t, sum_t, cross = _merge(max_s, sum_s, max_t, sum_t, cross, a, b, c, d, e, scale)
        # Looking at a label would stall the host, so one out of range shows as a NaN row.
        inside = (label >= 0) & (label < classes * WIDTH)
        target_s = tl.load(student + real * student_stride * WIDTH + label, mask=inside, other=float("nan")).to(ACC)
        target_t = tl.load(teacher + real * teacher_stride * WIDTH + label, mask=inside, other=float("nan")).to(ACC)
        total += _finish_rows(
            row, max_s, sum_s, max_t, sum_t, cross, target_s, target_t, weight, loss, stats,
            rows, inverse_t, target_factor, other_factor, factor, PER_ROW,
        )  # fmt: skip
    if not PER_ROW:
        if ALONE:
            tl.store(loss, times(factor, tl.sum(total, 0)))
        else:
            tl.store(sums + tl.program_id(0), tl.sum(total, 0))


@_jit
def decoupled_total_kernel(sums, loss, programs, factor: tl.float64, P: tl.constexpr):
    """The loss from the sums of all programs, in one program and so in a fixed order."""
    program = tl.arange(0, P)
    total = tl.sum(tl.load(sums + program, mask=program < programs, other=0.0), 0)
    tl.store(loss, times(tl.full([], factor, total.dtype), total))


@_jit
def decoupled_grad_kernel(
    grad_loss, student, teacher, labels, weight, stats, grad,
    rows, classes, student_stride, teacher_stride, grad_stride,
    scale: tl.float64, target_factor: tl.float64, other_factor: tl.float64,
    R: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile [R, N] of the student's gradient; the factors have that of the rows and 1/T in them."""
    ACC: tl.constexpr = stats.dtype.element_ty
    scale = tl.full([], scale, ACC)
    target_factor, other_factor = tl.full([], target_factor, ACC), tl.full([], other_factor, ACC)
    rows = rows.to(tl.int64)
    row = (tl.program_id(0) // CHUNKS).to(tl.int64) * R + tl.arange(0, R)  # [R]
    valid = row < rows
    row = tl.minimum(row, rows - 1)
    column = (tl.program_id(0) % CHUNKS) * N + tl.arange(0, N)  # [N]
    s = _load(student, student_stride, row, column, classes, WIDTH, ACC)  # [R, N]
    t = _load(teacher, teacher_stride, row, column, classes, WIDTH, ACC)  # [R, N]
    log_s, log_t = tl.load(stats + rows + row) * LOG2E, tl.load(stats + 3 * rows + row) * LOG2E  # [R]
    q = tl.exp2((s - tl.load(stats + row)[:, None]) * scale - log_s[:, None])
    p = tl.exp2((t - tl.load(stats + 2 * rows + row)[:, None]) * scale - log_t[:, None])

    upstream = tl.load(grad_loss + row * grad_stride).to(ACC)  # [R]
    # What is not seen may be NaN. α and β apart, a factor of 0 is that of all rows.
    seen = tl.zeros_like(upstream) + tl.maximum(tl.abs(target_factor), tl.abs(other_factor)) != 0.0
    if weight is not None:
        scale_of_row = tl.load(weight + row)
        upstream *= scale_of_row
        seen = seen & (scale_of_row != 0.0)
    target = (upstream * target_factor * tl.load(stats + 4 * rows + row))[:, None]
    is_target = column[None, :] == tl.load(labels + row).to(tl.int64)[:, None]
    result = tl.where(is_target, target, (upstream * other_factor)[:, None] * (q - p) - target * q)
    result = tl.where(seen[:, None], result, 0.0)
    pointers = grad + row[:, None] * classes * WIDTH + column[None, :]
    tl.store(pointers, result, mask=valid[:, None] & (column < classes * WIDTH)[None, :])


ALONE_TILE = {torch.float64: 1024}  # elements that the only program holds at a time; 4096 elsewhere


def forward_plan(rows: int, classes: int, dtype: torch.dtype) -> dict:
    """Tile sizes by shape and dtype alone, so that a result does not depend on the GPU."""
    longest = LONGEST_TILE.get(dtype, 4096)
    n = min(max(triton.next_power_of_2(classes), 8), longest)
    trips = triton.cdiv(classes, n)
    # What one program reads in a few tiles needs no second launch, which would cost more than the idle multiprocessors.
    alone = rows * n * trips <= 8 * longest
    r = min(max((ALONE_TILE.get(dtype, 4096) if alone else longest // 4) // n, 1), triton.next_power_of_2(rows))
    return {
        "N": n,
        "TRIPS": trips,
        "R": r,
        "ALONE": alone,
        "programs": 1 if alone else min(triton.cdiv(rows, r), MOST_PROGRAMS),
    }


def launch_forward(student, teacher, labels, weight, temperature, target_factor, other_factor, factor, reduction):
    """(loss, stats), as csrc/kl/decoupled.h describes them."""
    rows, classes = student.shape
    factor, per_row = over_rows(factor, rows, reduction)
    dtype = statistics_dtype(student.dtype)
    if rows == 0:
        return student.new_zeros((0,) if per_row else (), dtype=dtype), student.new_empty(0, dtype=dtype)
    student, teacher = _columns_together(student), _columns_together(teacher)
    weight, labels = None if weight is None else weight.contiguous(), labels.contiguous()
    loss = student.new_empty((rows,) if per_row else (), dtype=dtype)
    stats = student.new_empty(FIELDS * rows, dtype=dtype)
    plan = forward_plan(rows, classes, student.dtype)
    programs = plan.pop("programs")
    w = width(classes, student, teacher)
    one_launch = plan["ALONE"] or per_row
    sums = None if one_launch else student.new_empty(programs, dtype=dtype)
    with on(student):
        decoupled_rows_kernel[(programs,)](
            student, teacher, labels, weight, loss, stats, sums,
            rows, classes // w, _row_stride(student) // w, _row_stride(teacher) // w,
            1.0 / temperature, target_factor, other_factor, factor,
            # Twice the warps of the family's other kernels: what tells the target from the others needs registers too.
            **plan, WIDTH=w, PER_ROW=per_row, num_warps=warps(2 * plan["R"] * plan["N"], student.dtype),
        )  # fmt: skip
        if not one_launch:
            decoupled_total_kernel[(1,)](sums, loss, programs, factor, P=MOST_PROGRAMS, num_warps=8)
    return loss, stats


def launch_backward(
    grad_loss, student, teacher, labels, weight, stats, temperature, target_factor, other_factor, factor, reduction
):  # fmt: skip
    """The student's gradient."""
    rows, classes = student.shape
    factor, per_row = over_rows(factor, rows, reduction)
    # The interpreter truncates where a GPU rounds to bf16, so there the kernel stores fp32 and torch rounds.
    truncates = backends.INTERPRETING and student.dtype == torch.bfloat16
    grad = student.new_empty(rows, classes, dtype=torch.float32 if truncates else student.dtype)
    if rows == 0:
        return grad.to(student.dtype)
    student, teacher = _columns_together(student), _columns_together(teacher)
    weight, labels = None if weight is None else weight.contiguous(), labels.contiguous()
    plan = backward_plan(rows, classes, student.dtype)
    w = width(classes, student, teacher)
    with on(student):
        decoupled_grad_kernel[(triton.cdiv(rows, plan["R"]) * plan["CHUNKS"],)](
            grad_loss, student, teacher, labels, weight, stats, grad,
            rows, classes // w, _row_stride(student) // w, _row_stride(teacher) // w,
            grad_loss.stride(0) if per_row else 0,
            1.0 / (math.log(2.0) * temperature), factor * target_factor / temperature,
            factor * other_factor / temperature,
            **plan, WIDTH=w, num_warps=warps(plan["R"] * plan["N"], student.dtype),
        )  # fmt: skip
    return grad.to(student.dtype)
