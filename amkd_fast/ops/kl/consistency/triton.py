"""Triton kernels of cosine-confidence distillation and their operators `amkd_fast::kl_consistency_*_triton`.

Launches: forward 1 (small) or 2, backward 1. csrc/kl/consistency.h has the statistics.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from amkd_fast import backends
from amkd_fast.ops.kl.consistency.op import FIELDS, TAIL
from amkd_fast.ops.kl.reference import statistics_dtype
from amkd_fast.ops.kl.triton import MOST_PROGRAMS, warps
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
_STRIDES = ["student_stride", "teacher_stride", "student2_stride", "teacher2_stride"]
_jit = triton.jit(do_not_specialize=["rows", "classes", *_STRIDES])


@triton.jit
def _cosine_sums(teacher, teacher2):
    """Σ a b, Σ a², Σ b² of a tile [R, N]; classes of −inf count as 0."""
    a, b = tl.where(teacher == float("-inf"), 0.0, teacher), tl.where(teacher2 == float("-inf"), 0.0, teacher2)
    return tl.sum(a * b, 1), tl.sum(a * a, 1), tl.sum(b * b, 1)


@triton.jit
def _finish_view(sums, max_s, max_t, stats, row, rows):
    """The divergences of rows [R] in one view, whose four statistics are stored."""
    sum_s, sum_t, cross = sums
    value, log_s, log_t = finish_divergence(sum_s, sum_t, cross)
    valid = row < rows
    tl.store(stats + row, max_s, mask=valid)
    tl.store(stats + rows + row, log_s, mask=valid)
    tl.store(stats + 2 * rows + row, max_t, mask=valid)
    tl.store(stats + 3 * rows + row, log_t, mask=valid)
    return tl.where(valid, value, 0.0)


@_jit
def kl_consistency_rows_kernel(
    student, teacher, student2, teacher2, total, stats, parts,
    rows, classes, student_stride, teacher_stride, student2_stride, teacher2_stride,
    scale: tl.float64, factor: tl.float64,
    R: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Rows, R at a time: statistics, and the program's sums over both views."""
    ACC: tl.constexpr = stats.dtype.element_ty
    scale = tl.full([], scale, ACC)
    rows = rows.to(tl.int64)
    column = tl.arange(0, N)
    clean = tl.zeros([R], ACC)
    augmented = tl.zeros([R], ACC)
    for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
        row = tile * R + tl.arange(0, R).to(tl.int64)  # [R]
        # Rows behind the last one repeat it: no mask on the rows of a load, no NaN from nothing.
        real = tl.minimum(row, rows - 1)
        s = load_columns(student, student_stride, real, column, classes, WIDTH, ACC)  # [R, N]
        t = load_columns(teacher, teacher_stride, real, column, classes, WIDTH, ACC)
        s2 = load_columns(student2, student2_stride, real, column, classes, WIDTH, ACC)
        t2 = load_columns(teacher2, teacher2_stride, real, column, classes, WIDTH, ACC)
        max_s, max_t, max_s2, max_t2 = tl.max(s, 1), tl.max(t, 1), tl.max(s2, 1), tl.max(t2, 1)  # [R]
        product, square, square2 = _cosine_sums(t, t2)
        for chunk in range(1, CHUNKS):
            here = chunk * N + column
            a = load_columns(teacher, teacher_stride, real, here, classes, WIDTH, ACC)
            b = load_columns(teacher2, teacher2_stride, real, here, classes, WIDTH, ACC)
            max_t, max_t2 = tl.maximum(max_t, tl.max(a, 1)), tl.maximum(max_t2, tl.max(b, 1))
            more, more_square, more_square2 = _cosine_sums(a, b)
            product += more
            square += more_square
            square2 += more_square2
            a = load_columns(student, student_stride, real, here, classes, WIDTH, ACC)
            b = load_columns(student2, student2_stride, real, here, classes, WIDTH, ACC)
            max_s, max_s2 = tl.maximum(max_s, tl.max(a, 1)), tl.maximum(max_s2, tl.max(b, 1))

        from_s, from_t = shift_of(max_s)[:, None], shift_of(max_t)[:, None]
        from_s2, from_t2 = shift_of(max_s2)[:, None], shift_of(max_t2)[:, None]
        _, _, sum_s, sum_t, cross = divergence_sums(s - from_s, t - from_t, scale, scale)
        _, _, sum_s2, sum_t2, cross2 = divergence_sums(s2 - from_s2, t2 - from_t2, scale, scale)
        for chunk in range(1, CHUNKS):
            here = chunk * N + column
            a = load_columns(student, student_stride, real, here, classes, WIDTH, ACC) - from_s
            b = load_columns(teacher, teacher_stride, real, here, classes, WIDTH, ACC) - from_t
            _, _, more_s, more_t, more = divergence_sums(a, b, scale, scale)
            sum_s += more_s
            sum_t += more_t
            cross += more
            a = load_columns(student2, student2_stride, real, here, classes, WIDTH, ACC) - from_s2
            b = load_columns(teacher2, teacher2_stride, real, here, classes, WIDTH, ACC) - from_t2
            _, _, more_s, more_t, more = divergence_sums(a, b, scale, scale)
            sum_s2 += more_s
            sum_t2 += more_t
            cross2 += more

        lengths = tl.sqrt(square) * tl.sqrt(square2)  # a NaN is no row without length
        confidence = 1.0 + tl.where(lengths == 0.0, 0.0, product / tl.where(lengths == 0.0, 1.0, lengths))
        tl.store(stats + 8 * rows + row, confidence, mask=row < rows)
        clean += _finish_view((sum_s, sum_t, cross), max_s, max_t, stats, row, rows)
        second = _finish_view((sum_s2, sum_t2, cross2), max_s2, max_t2, stats + 4 * rows, row, rows)
        augmented += tl.where(row < rows, confidence * second, 0.0)
    # In fp64: the total is one number, and none of its digits is lost here.
    first, second = factor * tl.sum(clean.to(tl.float64), 0), factor * tl.sum(augmented.to(tl.float64), 0)
    if ALONE:
        tl.store(stats + 9 * rows, first)
        tl.store(stats + 9 * rows + 1, second)
        tl.store(total, 0.5 * (first + second))
    else:
        tl.store(parts + tl.program_id(0), first)
        tl.store(parts + tl.num_programs(0) + tl.program_id(0), second)


@triton.jit
def _gradient(
    factor, student, teacher, student_stride, teacher_stride, stats, grad, row, column, rows, classes, scale,
    WIDTH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """A tile [R, N] of one student's gradient, factor [R] · (q − p)."""
    real = tl.minimum(row, rows - 1)
    s = load_columns(student, student_stride, real, column, classes, WIDTH, ACC)
    t = load_columns(teacher, teacher_stride, real, column, classes, WIDTH, ACC)
    q = probability(s, tl.load(stats + real), tl.load(stats + rows + real), scale)
    p = probability(t, tl.load(stats + 2 * rows + real), tl.load(stats + 3 * rows + real), scale)
    store_columns(grad, row, column, factor[:, None] * (q - p), rows, classes, WIDTH)


@_jit
def kl_consistency_grad_kernel(
    grad_total, student, teacher, student2, teacher2, stats, grad, grad2,
    rows, classes, student_stride, teacher_stride, student2_stride, teacher2_stride,
    scale: tl.float64, factor: tl.float64,
    R: tl.constexpr, N: tl.constexpr, CHUNKS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile [R, N] of either student's gradient."""
    ACC: tl.constexpr = stats.dtype.element_ty
    scale, factor = tl.full([], scale, ACC), tl.full([], factor, ACC)
    rows = rows.to(tl.int64)
    row = (tl.program_id(0) // CHUNKS).to(tl.int64) * R + tl.arange(0, R)  # [R]
    column = (tl.program_id(0) % CHUNKS) * N + tl.arange(0, N)  # [N]
    confidence = tl.load(stats + 8 * rows + tl.minimum(row, rows - 1))
    factor *= tl.load(grad_total).to(ACC)
    _gradient(
        tl.zeros_like(confidence) + factor, student, teacher, student_stride, teacher_stride, stats, grad,
        row, column, rows, classes, scale, WIDTH, ACC,
    )  # fmt: skip
    _gradient(
        factor * confidence, student2, teacher2, student2_stride, teacher2_stride, stats + 4 * rows, grad2,
        row, column, rows, classes, scale, WIDTH, ACC,
    )  # fmt: skip


def launch_forward(student, teacher, augmented_student, augmented_teacher, temperature, row_scale):
    """(total, stats), as csrc/kl/consistency.h describes them."""
    rows, classes = student.shape
    dtype = statistics_dtype(student.dtype)
    if rows == 0:
        return student.new_zeros((), dtype=dtype), student.new_zeros(TAIL, dtype=dtype)
    tensors = tuple(map(columns_together, (student, teacher, augmented_student, augmented_teacher)))
    total, stats = student.new_empty((), dtype=dtype), student.new_empty(FIELDS * rows + TAIL, dtype=dtype)
    plan = forward_plan(rows, classes, student.dtype, len(tensors))
    programs = plan.pop("programs")
    parts = None if programs == 1 else student.new_empty(TAIL * programs, dtype=torch.float64)
    w = width(tensors)
    with on(student):
        kl_consistency_rows_kernel[(programs,)](
            *tensors, total, stats, parts, rows, classes // w, *(row_stride(x) // w for x in tensors),
            1.0 / (math.log(2.0) * temperature), row_scale / rows,
            **plan, WIDTH=w, ALONE=parts is None, num_warps=warps(2 * plan["R"] * plan["N"], student.dtype),
        )  # fmt: skip
        if parts is not None:
            tail = stats[FIELDS * rows :]
            kl_rows_total_kernel[(1,)](parts, tail, total, programs, P=MOST_PROGRAMS, COUNT=TAIL, num_warps=8)
    return total, stats


def launch_backward(
    grad_total, student, teacher, augmented_student, augmented_teacher, stats, temperature, row_scale
):  # fmt: skip
    """The gradients of both students."""
    rows, classes = student.shape
    # The interpreter truncates where a GPU rounds to bf16, so there the kernel stores fp32 and torch rounds.
    truncates = backends.INTERPRETING and student.dtype == torch.bfloat16
    out = torch.float32 if truncates else student.dtype
    grads = [student.new_empty(rows, classes, dtype=out) for _ in range(2)]
    if rows > 0:
        tensors = tuple(map(columns_together, (student, teacher, augmented_student, augmented_teacher)))
        plan, w = backward_plan(rows, classes, student.dtype), width(tensors)
        with on(student):
            kl_consistency_grad_kernel[(triton.cdiv(rows, plan["R"]) * plan["CHUNKS"],)](
                grad_total, *tensors, stats, *grads, rows, classes // w, *(row_stride(x) // w for x in tensors),
                1.0 / (math.log(2.0) * temperature), 0.5 * row_scale / temperature / rows,
                **plan, WIDTH=w, num_warps=warps(plan["R"] * plan["N"], student.dtype),
            )  # fmt: skip
    return grads[0].to(student.dtype), grads[1].to(student.dtype)
