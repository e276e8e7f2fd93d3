"""Triton kernels of the standardised KL divergence and their operators `amkd_fast::kl_standardised_*_triton`.

Launches: forward 1 (small, or per row) or 2, backward 1. csrc/kl/standardised.h has the statistics.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from amkd_fast import backends
from amkd_fast.ops.kl.reference import statistics_dtype
from amkd_fast.ops.kl.standardised.op import FIELDS
from amkd_fast.ops.kl.triton import MOST_PROGRAMS, over_rows, times, warps
from amkd_fast.ops.kl.triton_rows import (
    backward_plan,
    columns_together,
    divergence_sums,
    finish_divergence,
    forward_plan,
    kl_rows_total_kernel,
    load_columns,
    probability,
    row_stride,
    shift_of,
    store_columns,
    width,
)
from amkd_fast.ops.triton_common import on

# Numbers that change from call to call must not each compile a kernel of their own: see ops/kl/triton.py.
_jit = triton.jit(do_not_specialize=["rows", "classes", "student_stride", "teacher_stride", "grad_stride"])


@triton.jit
def _exponent_of(scale):
    """What multiplies z − max in an exponent. Where nothing varies that is 0, or −inf for a class that is masked out,
    and has to stay so."""
    return tl.where(scale == 0.0, 1.0, scale)


@triton.jit
def _kept(logits, values):
    """The values [R, N], 0 at classes of −inf."""
    return tl.where(logits == float("-inf"), 0.0, values)


@triton.jit
def _moments(
    base, stride, first, row, column, classes,
    N: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Maximum, centre, 1/s and n of rows [R], whose first columns are there; csrc/kl/standardised.h names them."""
    max = tl.max(first, 1)
    for chunk in range(1, CHUNKS):
        z = load_columns(base, stride, row, chunk * N + column, classes, WIDTH, ACC)
        max = tl.maximum(max, tl.max(z, 1))
    # From the maximum on, the differences of a row of equal logits are exactly 0.
    shift = shift_of(max)[:, None]
    sum, count = tl.sum(_kept(first, first - shift), 1), tl.sum(_kept(first, first * 0.0 + 1.0), 1)
    for chunk in range(1, CHUNKS):
        z = load_columns(base, stride, row, chunk * N + column, classes, WIDTH, ACC)
        sum += tl.sum(_kept(z, z - shift), 1)
        count += tl.sum(_kept(z, z * 0.0 + 1.0), 1)
    centre = sum / count
    from_centre = _kept(first, first - shift - centre[:, None])
    square = tl.sum(from_centre * from_centre, 1)
    for chunk in range(1, CHUNKS):
        z = load_columns(base, stride, row, chunk * N + column, classes, WIDTH, ACC)
        from_centre = _kept(z, z - shift - centre[:, None])
        square += tl.sum(from_centre * from_centre, 1)
    degrees = tl.where(count > 1.0, count - 1.0, 1.0)
    scale = tl.where(square == 0.0, 0.0, tl.sqrt(degrees / tl.where(square == 0.0, 1.0, square)))
    return max, centre, scale, count


@triton.jit
def _pulled_sums(s, t, shift_s, shift_t, scale_s, scale_t, centre):
    """The divergence's sums of a tile [R, N], and Σ 2^u (z − max − centre), Σ 2^v (z − max − centre) [R]."""
    e_s, e_t, sum_s, sum_t, cross = divergence_sums(s - shift_s, t - shift_t, scale_s, scale_t)
    from_centre = _kept(s, s - shift_s - centre)
    return sum_s, sum_t, cross, tl.sum(e_s * from_centre, 1), tl.sum(e_t * from_centre, 1)


@_jit
def kl_standardised_rows_kernel(
    student, teacher, weight, loss, stats, parts, rows, classes, student_stride, teacher_stride,
    per_t: tl.float64, factor: tl.float64,
    R: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
    PER_ROW: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Rows, R at a time: statistics, and losses or the program's sum of them."""
    ACC: tl.constexpr = stats.dtype.element_ty
    per_t, factor = tl.full([], per_t, ACC), tl.full([], factor, ACC)  # per_t has log2(e) in it
    rows = rows.to(tl.int64)
    column = tl.arange(0, N)
    losses = tl.zeros([R], ACC)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = tile * R + tl.arange(0, R).to(tl.int64)  # [R]
        # Rows behind the last one repeat it: no mask on the rows of a load, no NaN from nothing.
        real = tl.minimum(row, rows - 1)
        s = load_columns(student, student_stride, real, column, classes, WIDTH, ACC)  # [R, N]
        t = load_columns(teacher, teacher_stride, real, column, classes, WIDTH, ACC)  # [R, N]
        max_s, centre, scale_s, kept = _moments(
            student, student_stride, s, real, column, classes, N, CHUNKS, WIDTH, ACC
        )
        degrees = tl.where(kept > 1.0, kept - 1.0, 1.0)
        max_t, _, scale_t, _ = _moments(teacher, teacher_stride, t, real, column, classes, N, CHUNKS, WIDTH, ACC)
        shift_s, shift_t, middle = shift_of(max_s)[:, None], shift_of(max_t)[:, None], centre[:, None]
        u_scale, v_scale = (_exponent_of(scale_s) * per_t)[:, None], (_exponent_of(scale_t) * per_t)[:, None]
        sum_s, sum_t, cross, of_q, of_p = _pulled_sums(s, t, shift_s, shift_t, u_scale, v_scale, middle)
        for chunk in range(1, CHUNKS):
            a = load_columns(student, student_stride, real, chunk * N + column, classes, WIDTH, ACC)
            b = load_columns(teacher, teacher_stride, real, chunk * N + column, classes, WIDTH, ACC)
            more_s, more_t, more, more_q, more_p = _pulled_sums(a, b, shift_s, shift_t, u_scale, v_scale, middle)
            sum_s += more_s
            sum_t += more_t
            cross += more
            of_q += more_q
            of_p += more_p

        value, log_s, log_t = finish_divergence(sum_s, sum_t, cross)
        valid = row < rows
        tl.store(stats + row, max_s, mask=valid)
        tl.store(stats + rows + row, log_s, mask=valid)
        tl.store(stats + 2 * rows + row, centre, mask=valid)
        # Two logits become ±1/√2, whatever they are.
        tl.store(stats + 3 * rows + row, tl.where(kept > 2.0, scale_s, 0.0), mask=valid)
        tl.store(stats + 4 * rows + row, (of_q / sum_s - of_p / sum_t) * scale_s / degrees, mask=valid)
        tl.store(stats + 5 * rows + row, max_t, mask=valid)
        tl.store(stats + 6 * rows + row, log_t, mask=valid)
        tl.store(stats + 7 * rows + row, scale_t, mask=valid)
        scale = factor
        if weight is not None:
            scale = factor * tl.load(weight + real)
        value = times(scale, value)
        if PER_ROW:
            tl.store(loss + row, value, mask=valid)
        else:
            losses += tl.where(valid, value, 0.0)
    if not PER_ROW:
        tl.store(loss if ALONE else parts + tl.program_id(0), tl.sum(losses, 0))


@_jit
def kl_standardised_grad_kernel(
    grad_loss, student, teacher, weight, stats, grad,
    rows, classes, student_stride, teacher_stride, grad_stride, per_t: tl.float64, factor: tl.float64,
    R: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile [R, N] of the student's gradient; `factor` has 1/T in it."""
    ACC: tl.constexpr = stats.dtype.element_ty
    per_t, factor = tl.full([], per_t, ACC), tl.full([], factor, ACC)
    rows = rows.to(tl.int64)
    row = (tl.program_id(0) // CHUNKS).to(tl.int64) * R + tl.arange(0, R)  # [R]
    real = tl.minimum(row, rows - 1)
    column = (tl.program_id(0) % CHUNKS) * N + tl.arange(0, N)  # [N]
    s = load_columns(student, student_stride, real, column, classes, WIDTH, ACC)  # [R, N]
    t = load_columns(teacher, teacher_stride, real, column, classes, WIDTH, ACC)  # [R, N]
    max_s, centre = tl.load(stats + real), tl.load(stats + 2 * rows + real)  # [R]
    scale_s, scale_t = tl.load(stats + 3 * rows + real), tl.load(stats + 7 * rows + real)
    q = probability(s, max_s, tl.load(stats + rows + real), (_exponent_of(scale_s) * per_t)[:, None])
    p = probability(
        t, tl.load(stats + 5 * rows + real), tl.load(stats + 6 * rows + real), (_exponent_of(scale_t) * per_t)[:, None]
    )
    pull = tl.load(stats + 4 * rows + real) * scale_s
    through_s = pull[:, None] * _kept(s, s - (max_s + 0.0)[:, None] - centre[:, None])
    factor = tl.zeros_like(scale_s) + factor  # [R]
    if weight is not None:
        factor *= tl.load(weight + real)
    slope = (tl.load(grad_loss + real * grad_stride).to(ACC) * scale_s)[:, None] * (q - p - through_s)
    store_columns(grad, row, column, times(factor[:, None], slope), rows, classes, WIDTH)


def launch_forward(student, teacher, weight, temperature, factor, reduction):
    """(loss, stats), as csrc/kl/standardised.h describes them."""
    rows, classes = student.shape
    factor, per_row = over_rows(factor, rows, reduction)
    dtype = statistics_dtype(student.dtype)
    if rows == 0:
        return student.new_zeros((0,) if per_row else (), dtype=dtype), student.new_zeros(0, dtype=dtype)
    tensors = (columns_together(student), columns_together(teacher))
    weight = None if weight is None else weight.contiguous()
    loss = student.new_empty((rows,) if per_row else (), dtype=dtype)
    stats = student.new_empty(FIELDS * rows, dtype=dtype)
    plan = forward_plan(rows, classes, student.dtype, len(tensors))
    programs = plan.pop("programs")
    parts = None if programs == 1 or per_row else student.new_empty(programs, dtype=dtype)
    w = width(tensors)
    with on(student):
        kl_standardised_rows_kernel[(programs,)](
            *tensors, weight, loss, stats, parts, rows, classes // w, *(row_stride(x) // w for x in tensors),
            1.0 / (math.log(2.0) * temperature), factor,
            **plan, WIDTH=w, PER_ROW=per_row, ALONE=parts is None,
            num_warps=warps(2 * plan["R"] * plan["N"], student.dtype),  # both sides stay in registers
        )  # fmt: skip
        if parts is not None:
            kl_rows_total_kernel[(1,)](parts, loss, None, programs, P=MOST_PROGRAMS, COUNT=1, num_warps=8)
    return loss, stats


def launch_backward(grad_loss, student, teacher, weight, stats, temperature, factor, reduction):
    """The student's gradient."""
    rows, classes = student.shape
    factor, per_row = over_rows(factor, rows, reduction)
    # The interpreter truncates where a GPU rounds to bf16, so there the kernel stores fp32 and torch rounds.
    truncates = backends.INTERPRETING and student.dtype == torch.bfloat16
    grad = student.new_empty(rows, classes, dtype=torch.float32 if truncates else student.dtype)
    if rows > 0:
        tensors = (columns_together(student), columns_together(teacher))
        weight = None if weight is None else weight.contiguous()
        plan, w = backward_plan(rows, classes, student.dtype), width(tensors)
        with on(student):
            kl_standardised_grad_kernel[(triton.cdiv(rows, plan["R"]) * plan["CHUNKS"],)](
                grad_loss, *tensors, weight, stats, grad, rows, classes // w, *(row_stride(x) // w for x in tensors),
                grad_loss.stride(0) if per_row else 0, 1.0 / (math.log(2.0) * temperature), factor / temperature,
                **plan, WIDTH=w, num_warps=warps(plan["R"] * plan["N"], student.dtype),
            )  # fmt: skip
    return grad.to(student.dtype)
