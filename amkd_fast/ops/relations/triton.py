"""The operator `amkd_fast::relations_loss_triton`; csrc/relations has its mathematics.

Everything is in fp64, as the cosines come from differences of squared distances. A tile of pairs (a, b) goes through
all third rows c and takes all three angles of each triangle, three times the least work, but so a pair's weight in the
gradient is one program's alone: nothing is added by two of them, and the bits are the same on every run.

Launches: two for the pairs of both sides, one for the angles, one for the distances' loss, one to finish and one for
the gradient.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast.ops.relations.reference import statistics_dtype
from amkd_fast.ops.triton_common import on

TILE = 16  # rows of either side of a tile of pairs
COLUMNS = 8  # that a distance takes at a time
WIDE = 32  # columns of the gradient
CHUNK = 256  # partial sums that are added at a time
COINCIDE = tl.constexpr(1e-300)  # squared distances below it are taken for 0
ROOT_OF_TWO = tl.constexpr(1.41421356237309504880)

_jit = triton.jit(do_not_specialize=["programs"])


@_jit
def relations_pairs_kernel(rows, squared, inverse, sums, count, width, stride, R: tl.constexpr, N: tl.constexpr):
    """A tile [R, R] of squared distances and of 1 / √(2 squared); sum of the distances, number of those above 0."""
    a = tl.program_id(0) * R + tl.arange(0, R)
    b = tl.program_id(1) * R + tl.arange(0, R)
    total = tl.zeros([R, R], tl.float64)
    for first in range(0, width, N):
        column = first + tl.arange(0, N)
        inside = (column < width)[None, :]
        x = tl.load(
            rows + a.to(tl.int64)[:, None] * stride + column[None, :], mask=(a < count)[:, None] & inside, other=0.0
        )
        y = tl.load(
            rows + b.to(tl.int64)[:, None] * stride + column[None, :], mask=(b < count)[:, None] & inside, other=0.0
        )
        difference = x.to(tl.float64)[:, None, :] - y.to(tl.float64)[None, :, :]  # [R, R, N]
        total += tl.sum(difference * difference, 2)
    root = tl.rsqrt(2.0 * total)
    root *= 1.5 - total * root * root  # to the last bits, without the slow paths of a root and a division
    coincide = total < COINCIDE  # a NaN does not
    there = (a < count)[:, None] & (b < count)[None, :]
    place = a.to(tl.int64)[:, None] * count + b[None, :]
    total = tl.where(coincide, 0.0, total)
    root = tl.where(coincide, 0.0, root)
    tl.store(squared + place, total, mask=there)
    tl.store(inverse + place, root, mask=there)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(sums + 2 * program, tl.sum(tl.where(there, total * root * ROOT_OF_TWO, 0.0)))
    tl.store(sums + 2 * program + 1, tl.sum((there & (root != 0.0)).to(tl.float64)))


@triton.jit
def slope_of(error):
    """The derivative of the smooth l1 loss; NaN stays."""
    return tl.where(error > 1.0, 1.0, tl.where(error < -1.0, -1.0, error))


@triton.jit
def sum_of(sums, programs, which, CHUNK: tl.constexpr):
    """Column `which` of sums [programs, 2], in the same order every time."""
    total = tl.zeros([CHUNK], tl.float64)
    for first in range(0, programs, CHUNK):
        program = first + tl.arange(0, CHUNK)
        total += tl.load(sums + 2 * program.to(tl.int64) + which, mask=program < programs, other=0.0)
    return tl.sum(total)


@triton.jit
def factor_of(sums, programs, CHUNK: tl.constexpr):
    """What a side's distances are multiplied by: 1 over their mean; and how many are not 0."""
    total, apart = sum_of(sums, programs, 0, CHUNK), sum_of(sums, programs, 1, CHUNK)
    return tl.where(apart > 0.0, apart / tl.where(apart > 0.0, total, 1.0), 1.0), apart


@_jit
def relations_angles_kernel(
    squared, inverse, teacher_squared, teacher_inverse, weights, losses, factor: tl.float64, count,
    GRADIENT: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """A tile of pairs (a, b) and all c: the loss of the angles at c, and the pairs' weights in the gradient."""
    left, right = tl.program_id(0), tl.program_id(1)
    a, b = left * R + tl.arange(0, R), right * R + tl.arange(0, R)
    there = (a < count)[:, None] & (b < count)[None, :]
    loss = tl.zeros([R, R], tl.float64)
    if left <= right:
        place = a.to(tl.int64)[:, None] * count + b[None, :]
        d_ab, r_ab = tl.load(squared + place, mask=there, other=0.0), tl.load(inverse + place, mask=there, other=0.0)
        e_ab = tl.load(teacher_squared + place, mask=there, other=0.0)
        s_ab = tl.load(teacher_inverse + place, mask=there, other=0.0)
        weight = tl.zeros([R, R], tl.float64)
        for c in range(count):
            row = tl.cast(c, tl.int64) * count
            in_a, in_b = a < count, b < count
            d_ac = tl.load(squared + row + a, mask=in_a, other=0.0)[:, None]
            d_bc = tl.load(squared + row + b, mask=in_b, other=0.0)[None, :]
            r_ac = tl.load(inverse + row + a, mask=in_a, other=0.0)[:, None]
            r_bc = tl.load(inverse + row + b, mask=in_b, other=0.0)[None, :]
            e_ac = tl.load(teacher_squared + row + a, mask=in_a, other=0.0)[:, None]
            e_bc = tl.load(teacher_squared + row + b, mask=in_b, other=0.0)[None, :]
            s_ac = tl.load(teacher_inverse + row + a, mask=in_a, other=0.0)[:, None]
            s_bc = tl.load(teacher_inverse + row + b, mask=in_b, other=0.0)[None, :]
            cosine = ((d_ac - d_ab) + d_bc) * (r_ac * r_bc)
            error = cosine - ((e_ac - e_ab) + e_bc) * (s_ac * s_bc)
            slope = slope_of(error)
            loss += slope * (error - 0.5 * slope)
            if GRADIENT:
                weight += slope * (r_ac * r_bc)
                cosine = ((d_ab - d_bc) + d_ac) * (r_ab * r_ac)
                slope = slope_of(cosine - ((e_ab - e_bc) + e_ac) * (s_ab * s_ac))
                weight -= slope * (r_ab * (r_ac - r_ab * cosine))
                cosine = ((d_ab - d_ac) + d_bc) * (r_ab * r_bc)
                slope = slope_of(cosine - ((e_ab - e_ac) + e_bc) * (s_ab * s_bc))
                weight -= slope * (r_ab * (r_bc - r_ab * cosine))
        # The angle between a row and itself: a cosine of 1, or 0 where rows coincide.
        differ = (r_ab != 0.0) != (s_ab != 0.0)
        loss = 2.0 * loss + tl.where(differ, 1.0, 0.0) + (d_ab - d_ab) + (e_ab - e_ab)
        ordered = there & (a[:, None] < b[None, :])
        own = there & (a[:, None] == b[None, :])  # nothing, or a NaN
        loss = tl.where(ordered, loss, tl.where(own, (d_ab - d_ab) + (e_ab - e_ab), 0.0))
        if GRADIENT:
            weight = tl.where(a[:, None] == b[None, :], 0.0, 4.0 * factor * weight)
            tl.store(weights + place, weight, mask=there)
            mirrored = b.to(tl.int64)[None, :] * count + a[:, None]
            tl.store(weights + mirrored, weight, mask=there & (left < right))
    program = left * tl.num_programs(1) + right
    tl.store(losses + 2 * program, factor * tl.sum(loss))
    tl.store(losses + 2 * program + 1, 0.0)


@_jit
def relations_distances_kernel(
    squared, inverse, teacher_squared, teacher_inverse, sums, teacher_sums, losses, factor: tl.float64, count,
    programs, R: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile's loss of the distances, and its sum of slope · distance."""
    a = tl.program_id(0) * R + tl.arange(0, R)
    b = tl.program_id(1) * R + tl.arange(0, R)
    there = (a < count)[:, None] & (b < count)[None, :]
    place = a.to(tl.int64)[:, None] * count + b[None, :]
    own, _ = factor_of(sums, programs, CHUNK)
    other, _ = factor_of(teacher_sums, programs, CHUNK)
    d = tl.load(squared + place, mask=there, other=0.0) * tl.load(inverse + place, mask=there, other=0.0)
    e = tl.load(teacher_squared + place, mask=there, other=0.0) * tl.load(
        teacher_inverse + place, mask=there, other=0.0
    )
    error = (d * own - e * other) * ROOT_OF_TWO
    slope = slope_of(error)
    program = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    tl.store(losses + 2 * program, factor * tl.sum(slope * (error - 0.5 * slope)))
    tl.store(losses + 2 * program + 1, tl.sum(slope * d * ROOT_OF_TWO))


@_jit
def relations_finish_kernel(
    sums, teacher_sums, angle_losses, distance_losses, loss, relative, programs,
    ANGLES: tl.constexpr, DISTANCES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The loss; for the distances' gradient both factors, and what goes through the student's mean."""
    total = tl.full([], 0.0, tl.float64)
    if ANGLES:
        total += sum_of(angle_losses, programs, 0, CHUNK)
    if DISTANCES:
        total += sum_of(distance_losses, programs, 0, CHUNK)
        own, apart = factor_of(sums, programs, CHUNK)
        other, _ = factor_of(teacher_sums, programs, CHUNK)
        product = sum_of(distance_losses, programs, 1, CHUNK) * own * own
        tl.store(relative, own)
        tl.store(relative + 1, other)
        tl.store(relative + 2, tl.where(apart > 0.0, product / tl.where(apart > 0.0, apart, 1.0), 0.0))
    tl.store(loss, total.to(loss.dtype.element_ty))


@_jit
def relations_gradient_kernel(
    rows, squared, inverse, teacher_squared, teacher_inverse, weights, relative, grad, factor: tl.float64,
    count, width, stride, ANGLES: tl.constexpr, DISTANCES: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Rows a [R] and columns [N] of Σ_b weight_ab (x_b − x_a)."""
    a = tl.program_id(0) * R + tl.arange(0, R)
    column = tl.program_id(1) * N + tl.arange(0, N)
    in_a, inside = a < count, column < width
    there = in_a[:, None] & inside[None, :]
    own = tl.load(rows + a.to(tl.int64)[:, None] * stride + column[None, :], mask=there, other=0.0).to(tl.float64)
    total = tl.zeros([R, N], tl.float64)
    for b in range(count):
        place = tl.cast(b, tl.int64) * count + a
        weight = tl.zeros([R], tl.float64)
        if ANGLES:
            weight += tl.load(weights + place, mask=in_a, other=0.0)
        if DISTANCES:
            r = tl.load(inverse + place, mask=in_a, other=0.0) * ROOT_OF_TWO
            d = tl.load(squared + place, mask=in_a, other=0.0) * r
            s = tl.load(teacher_inverse + place, mask=in_a, other=0.0) * ROOT_OF_TWO
            e = tl.load(teacher_squared + place, mask=in_a, other=0.0) * s
            student_factor = tl.load(relative)
            slope = slope_of(d * student_factor - e * tl.load(relative + 1)) * student_factor
            weight -= 2.0 * factor * (slope - tl.load(relative + 2)) * r
        x = tl.load(rows + tl.cast(b, tl.int64) * stride + column, mask=inside, other=0.0).to(tl.float64)
        total += weight[:, None] * (x[None, :] - own)
    place = a.to(tl.int64)[:, None] * width + column[None, :]
    tl.store(grad + place, total.to(grad.dtype.element_ty), mask=there)


def launch_loss(
    student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient in the student, as amkd_fast/ops/schemas.py describes them."""
    (count, width), dtype = student.shape, statistics_dtype(student.dtype)
    angles, distances = angle_weight != 0, distance_weight != 0
    loss, grad = (
        student.new_empty((), dtype=dtype),
        student.new_empty((count if with_gradient else 0, width), dtype=dtype),
    )
    if count == 0:
        return loss.zero_(), grad
    across = triton.cdiv(count, TILE)
    programs, tiles = across * across, (across, across)
    with on(student):
        sides, sums = [], []
        for rows in (student, teacher):
            rows = rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()
            squared, inverse = (rows.new_empty((count, count), dtype=torch.float64) for _ in range(2))
            sums.append(rows.new_empty((programs, 2), dtype=torch.float64))
            relations_pairs_kernel[tiles](
                rows, squared, inverse, sums[-1], count, rows.shape[1], rows.stride(0), R=TILE, N=COLUMNS
            )
            sides.append((rows, squared, inverse))
        (rows, *own), (_, *other) = sides
        pairs = (*own, *other)
        factors = distance_weight / count**2, angle_weight / count**3
        parts, weights = [None, None], None
        if angles:
            weights = torch.empty_like(own[0]) if with_gradient else None
            parts[0] = torch.empty_like(sums[0])
            relations_angles_kernel[tiles](*pairs, weights, parts[0], factors[1], count, GRADIENT=with_gradient, R=TILE)
        if distances:
            parts[1] = torch.empty_like(sums[0])
            relations_distances_kernel[tiles](*pairs, *sums, parts[1], factors[0], count, programs, R=TILE, CHUNK=CHUNK)
        relative = sums[0].new_empty(3)
        relations_finish_kernel[(1,)](
            *sums, *parts, loss, relative, programs, ANGLES=angles, DISTANCES=distances, CHUNK=CHUNK
        )
        if with_gradient:
            relations_gradient_kernel[(across, triton.cdiv(width, WIDE))](
                rows, *pairs, weights, relative, grad, factors[0], count, width, rows.stride(0),
                ANGLES=angles, DISTANCES=distances, R=TILE, N=WIDE,
            )  # fmt: skip
    return loss, grad
