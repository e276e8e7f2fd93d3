"""Triton kernels of the segments family and the operators `amkd_fast::segments_…_triton`.

One launch for all segments, whose pointers are a tuple among the kernel's arguments: nothing is copied to the device,
and a CUDA graph may record it. A program takes every P-th tile of one segment; what the programs of a segment found is
added up in order by a second, small launch. More than GROUP segments take a launch for every GROUP of them.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.segments.op import dense, loss_dtype
from amkd_fast.ops.triton_common import on

GROUP = 16  # segments of a launch: the kernel has code for each of them
TILE = 1024  # elements
PROGRAMS = 256  # of a segment, at most
WARPS = 4

# Numbers that change from call to call must not each compile a kernel of their own. The sizes may: that one is a
# multiple of 16 is what makes loads of 16 bytes possible.
_jit = triton.jit(do_not_specialize=["slopes", "factors", "programs", "width"])


@triton.jit
def _number(bits, ACC: tl.constexpr):
    """A Python float would come as fp32: its fp64 bits come as an integer."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True).to(ACC)


@triton.jit
def _sweep(student, teacher, grad, size, slope, seen, programs, N: tl.constexpr, ACC: tl.constexpr):
    """Σ (student − teacher)² of this program's tiles, in ACC; writes their gradients, slope times the difference.

    A segment that is not seen may have anything in it.
    """
    sums = tl.zeros([N], ACC)
    for first in range(tl.program_id(0).to(tl.int64) * N, size, tl.cast(programs, tl.int64) * N):
        e = first + tl.arange(0, N)
        there = e < size
        s = tl.load(student + e, mask=there, other=0.0).to(ACC)
        difference = s - tl.load(teacher + e, mask=there, other=0.0).to(ACC)
        difference = tl.where(seen, difference, 0.0)
        sums += difference * difference
        if grad is not None:
            tl.store(grad + e, (difference * slope).to(grad.dtype.element_ty), mask=there)
    return tl.sum(sums, 0)


@_jit
def segments_sweep_kernel(
    student, teacher, grads, sizes, slopes, weights, grad_loss, partials, programs, N: tl.constexpr, S: tl.constexpr
):
    """Program (p, k): tiles p, p + P, … of segment k. partials [S, P]; slopes: the bits of 2 · factor / size."""
    for k in tl.static_range(S):
        if tl.program_id(1) == k:
            ACC: tl.constexpr = tl.float64 if student[k].dtype.element_ty == tl.float64 else tl.float32
            slope = _number(slopes[k], ACC)
            if weights is not None:
                slope *= tl.load(weights + k).to(ACC)
            seen = slope != 0.0
            if grad_loss is not None:
                slope *= tl.load(grad_loss).to(ACC)
            grad = grads[k] if grads is not None else None
            total = _sweep(student[k], teacher[k], grad, sizes[k], slope, seen, programs, N, ACC)
            if partials is not None:
                tl.store(partials + k * programs + tl.program_id(0), total)


@_jit
def segments_sum_kernel(
    partials, sizes, factors, weights, loss, means, width, FIRST: tl.constexpr, P: tl.constexpr, S: tl.constexpr
):
    """The means [S] of partials [S, width ≤ P]; their weighted sum, added to the loss [] unless FIRST."""
    p = tl.arange(0, P)
    # In fp64 throughout: so few numbers cost nothing, and what is left is the one rounding of the loss.
    total = tl.zeros([], tl.float64) if FIRST else tl.load(loss).to(tl.float64)
    for k in tl.static_range(S):
        sums = tl.load(partials + k * width + p, mask=p < width, other=0.0).to(tl.float64)
        mean = tl.sum(sums, 0) / tl.cast(sizes[k], tl.float64)
        tl.store(means + k, mean.to(means.dtype.element_ty))
        weight = _number(factors[k], tl.float64)
        if weights is not None:
            weight *= tl.load(weights + k).to(tl.float64)
        total += weight * mean
    tl.store(loss, total.to(loss.dtype.element_ty))


@_jit
def segments_scale_kernel(grads, sizes, grad_loss, programs, N: tl.constexpr, S: tl.constexpr):
    """Program (p, k): tiles p, p + P, … of segment k, times grad_loss; nothing is read where that is 1."""
    factor = tl.load(grad_loss)
    if factor != 1.0:
        for k in tl.static_range(S):
            if tl.program_id(1) == k:
                grad = grads[k]
                for first in range(tl.program_id(0).to(tl.int64) * N, sizes[k], tl.cast(programs, tl.int64) * N):
                    e = first + tl.arange(0, N)
                    value = tl.load(grad + e, mask=e < sizes[k], other=0.0).to(grad_loss.dtype.element_ty)
                    tl.store(grad + e, (value * factor).to(grad.dtype.element_ty), mask=e < sizes[k])


def launch_forward(
    student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor | None, factors: Sequence[float],
    with_grads: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:  # fmt: skip
    """The loss, the means and perhaps the gradients, as amkd_fast/ops/schemas.py describes them."""
    student, teacher = _alike(student, teacher)
    dtype = loss_dtype(student)
    loss, means = student[0].new_empty((), dtype=dtype), student[0].new_empty(len(student), dtype=dtype)
    grads = [torch.empty_like(segment) for segment in student] if with_grads else []
    for part in _groups(student):
        sizes, programs = _sizes(student[part])
        partials = means.new_empty(len(sizes) * programs)
        given = None if weights is None else weights[part]
        _sweep_into(grads[part], student[part], teacher[part], given, factors[part], None, partials)
        with on(loss):
            segments_sum_kernel[(1,)](
                partials, tuple(max(size, 1) for size in sizes), tuple(map(_bits, factors[part])), given, loss,
                means[part], programs, FIRST=part.start == 0, P=triton.next_power_of_2(programs), S=len(sizes),
                num_warps=WARPS,
            )  # fmt: skip
    return loss, means, grads


def launch_backward(
    grad_loss: Tensor, student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor | None,
    factors: Sequence[float],
) -> list[Tensor]:  # fmt: skip
    """The gradients of the student."""
    student, teacher = _alike(student, teacher)
    grads = [torch.empty_like(segment) for segment in student]
    for part in _groups(student):
        given = None if weights is None else weights[part]
        _sweep_into(grads[part], student[part], teacher[part], given, factors[part], grad_loss, None)
    return grads


def launch_scale(grads: Sequence[Tensor], grad_loss: Tensor) -> None:
    """Multiply the gradients in place."""
    for part in _groups(grads):
        sizes, programs = _sizes(grads[part])
        into = _stored(grads[part])
        with on(grad_loss):
            segments_scale_kernel[(programs, len(sizes))](
                tuple(into), sizes, grad_loss, programs, N=TILE, S=len(sizes), num_warps=WARPS
            )
        _rounded(grads[part], into)


def _sweep_into(
    grads: Sequence[Tensor], student: Sequence[Tensor], teacher: Sequence[Tensor], weights: Tensor | None,
    factors: Sequence[float], grad_loss: Tensor | None, partials: Tensor | None,
) -> None:  # fmt: skip
    """One launch over a group of segments; no gradients are written where there are no tensors for them."""
    sizes, programs = _sizes(student)
    into = _stored(grads)
    slopes = tuple(_bits(2.0 * factor / max(size, 1)) for factor, size in zip(factors, sizes, strict=True))
    with on(student[0]):
        segments_sweep_kernel[(programs, len(sizes))](
            tuple(student), tuple(teacher), tuple(into) or None, sizes, slopes, weights, grad_loss, partials, programs,
            N=TILE, S=len(sizes), num_warps=WARPS,
        )  # fmt: skip
    _rounded(grads, into)


def _alike(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Pairs whose elements fill one block of memory each, in the same order."""
    student = [dense(segment) for segment in student]
    pairs = zip(student, teacher, strict=True)
    teacher = [t if t.stride() == s.stride() else torch.empty_like(s).copy_(t) for s, t in pairs]
    return student, teacher


def _groups(segments: Sequence[Tensor]) -> list[slice]:
    return [slice(first, first + GROUP) for first in range(0, len(segments), GROUP)]


def _sizes(segments: Sequence[Tensor]) -> tuple[tuple[int, ...], int]:
    """The sizes, and how many programs a segment gets."""
    sizes = tuple(segment.numel() for segment in segments)
    return sizes, max(1, min(PROGRAMS, triton.cdiv(max(sizes), TILE)))


def _bits(number: float) -> int:
    return struct.unpack("q", struct.pack("d", number))[0]


def _stored(grads: Sequence[Tensor]) -> list[Tensor]:
    """Where the kernels write: the interpreter truncates where a GPU rounds to bf16, so there torch does it."""
    truncates = backends.INTERPRETING
    return [grad.float() if truncates and grad.dtype == torch.bfloat16 else grad for grad in grads]


def _rounded(grads: Sequence[Tensor], stored: Sequence[Tensor]) -> None:
    for grad, found in zip(grads, stored, strict=True):
        if found is not grad:
            grad.copy_(found)
