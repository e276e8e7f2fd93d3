"""What the Triton kernels of the triplet family share: rows, exact distances, who is whose candidate, penalties."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

EUCLIDEAN, SQUARED, COSINE = (tl.constexpr(i) for i in range(3))  # distances.DISTANCES
INF = tl.constexpr(float("inf"))
FAR = tl.constexpr(2**31 - 1)  # above every index

# Integers that change from call to call must not each compile a kernel of their own. They carry no divisibility by 16
# either; WIDTH does that: it divides the row strides and the number of columns, which are passed divided by it, so that
# the compiler knows that a vector of WIDTH elements neither straddles the end of a row nor misses its alignment.
_NOT_SPECIALIZED = [
    "anchors", "references", "columns", "anchor_stride", "positive_stride", "reference_stride", "grad_stride",
    "self_offset", "slots", "candidates", "programs", "length",
]  # fmt: skip
jit = triton.jit(do_not_specialize=_NOT_SPECIALIZED)
# Without a bound of its own ptxas spills a register or two to make room for one more block.
WITHOUT_SPILLS = {"maxnreg": 255}


@triton.jit
def load_rows(base, stride, row, column, columns, there, WIDTH: tl.constexpr):
    """Elements [R, N] of rows [R] and columns [N]; 0 behind the last column and in rows that are not there."""
    pointers = base + row[:, None] * stride * WIDTH + column[None, :]
    return tl.load(pointers, mask=there[:, None] & (column < columns * WIDTH)[None, :], other=0.0)


@triton.jit
def inverse_norms(base, stride, row, columns, there, WIDTH: tl.constexpr, N: tl.constexpr):
    """1/|x| of rows [R] in fp64, −1 for a row that is too short to have a direction."""
    square = tl.zeros([row.shape[0]], tl.float64)
    for first in range(0, columns * WIDTH, N):
        x = load_rows(base, stride, row, first + tl.arange(0, N), columns, there, WIDTH).to(tl.float64)
        square += tl.sum(x * x, 1)
    # As many bits as a root and a division would have, without their slow paths, which cost registers.
    inverse = tl.rsqrt(square)
    inverse *= 1.5 - 0.5 * square * inverse * inverse
    # The smallest normal number: below it a norm has lost its digits.
    TINY: tl.constexpr = 2.0**-1022 if base.dtype.element_ty == tl.float64 else 2.0**-126
    return tl.where(square <= TINY, -1.0, inverse)


@triton.jit
def squares_of_pairs(
    x, x_stride, x_row, y, y_stride, y_row, columns, there,
    DISTANCE: tl.constexpr, ACC: tl.constexpr, WIDTH: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """|x − y|² of pairs of rows [R] from their differences; for cosine the distance itself, in fp64 until the end.

    NaN where a row is not finite, which has no distance.
    """
    if DISTANCE == COSINE:
        x_inverse = inverse_norms(x, x_stride, x_row, columns, there, WIDTH, N)
        y_inverse = inverse_norms(y, y_stride, y_row, columns, there, WIDTH, N)
        total = tl.zeros([x_row.shape[0]], tl.float64)
        for first in range(0, columns * WIDTH, N):
            column = first + tl.arange(0, N)
            u = load_rows(x, x_stride, x_row, column, columns, there, WIDTH).to(tl.float64) * x_inverse[:, None]
            v = load_rows(y, y_stride, y_row, column, columns, there, WIDTH).to(tl.float64) * y_inverse[:, None]
            total += tl.sum((u - v) * (u - v), 1)
        found = tl.where((x_inverse < 0.0) | (y_inverse < 0.0), 1.0, total * 0.5).to(ACC)
    else:
        found = tl.zeros([x_row.shape[0]], ACC)
        for first in range(0, columns * WIDTH, N):
            column = first + tl.arange(0, N)
            difference = load_rows(x, x_stride, x_row, column, columns, there, WIDTH).to(ACC)
            difference -= load_rows(y, y_stride, y_row, column, columns, there, WIDTH).to(ACC)
            found += tl.sum(difference * difference + difference * 0.0, 1)
    return found


@triton.jit
def root(square):
    """√ with its last bit: Triton's fp32 one is approximate, and the slow path of the exact one costs registers."""
    found = tl.sqrt(square)
    if square.dtype == tl.float32:
        usable = (found > 0.0) & (found < INF)
        rest = tl.fma(-found, found, square)
        found = tl.where(usable, found + rest * (0.5 / tl.where(usable, found, 1.0)), found)
    return found


@triton.jit
def held(distance):
    """The largest finite number in place of +inf, which means that there is no candidate; NaN stays."""
    LARGEST: tl.constexpr = 1.7976931348623157e308 if distance.dtype == tl.float64 else 3.4028234663852886e38
    return tl.where(distance == INF, LARGEST, distance)


@triton.jit
def roles(
    labels, reference_labels, exclude, self_offset, row, column, there, EXCLUDED: tl.constexpr,
):  # fmt: skip
    """Which reference rows [R] are positives and which are negatives of the anchors [A]: two masks [A, R]."""
    self_column = tl.where(self_offset < 0, -1, row + self_offset)
    allowed = there[None, :] & (column[None, :] != self_column[:, None])
    if labels is None:
        is_negative = allowed
        is_positive = allowed & (column[None, :] < 0)
    else:
        label = tl.load(labels + row).to(tl.int64)  # [A]
        other = tl.load(reference_labels + column, mask=there, other=0).to(tl.int64)  # [R]
        is_positive = allowed & (label[:, None] == other[None, :])
        is_negative = allowed & (label[:, None] != other[None, :])
        for e in tl.static_range(EXCLUDED):
            named = tl.load(exclude + row * EXCLUDED + e).to(tl.int64)
            is_negative &= named[:, None] != other[None, :]
    return is_positive, is_negative


@triton.jit
def log1p_exp(x):
    """log(1 + e^x) with a small relative error everywhere; +0 at −inf."""
    e = tl.exp(-tl.abs(x))
    if x.dtype == tl.float64:
        w = 1.0 + e
        bend = tl.where(w == 1.0, e, tl.log(w) * (e / tl.where(w == 1.0, 1.0, w - 1.0)))
    else:
        # 2 artanh(s): the fp32 logarithm of a GPU is an approximation that is poor near 1.
        s = e / (2.0 + e)
        q = s * s
        p = 1.0 / 13.0 + q * (1.0 / 15.0)
        p = 1.0 / 9.0 + q * (1.0 / 11.0 + q * p)
        p = 1.0 / 5.0 + q * (1.0 / 7.0 + q * p)
        bend = 2.0 * s * (1.0 + q * (1.0 / 3.0 + q * p))
    return tl.where(x <= 0.0, 0.0, x) + bend


@triton.jit
def penalty(d_ap, d_an, margin, SOFT: tl.constexpr):
    """What a triplet costs; a comparison that lets NaN pass, which `tl.maximum` does not."""
    if SOFT:
        cost = log1p_exp(d_ap - d_an)
    else:
        gap = d_ap - d_an + margin
        cost = tl.where(gap <= 0.0, 0.0, gap)
    return cost


@triton.jit
def slope(d_ap, d_an, margin, SOFT: tl.constexpr):
    """The derivative of :func:`penalty` by d_ap."""
    if SOFT:
        x = d_ap - d_an
        e = tl.exp(-tl.abs(x))
        found = tl.where(x <= 0.0, e, 1.0) / (1.0 + e)
    else:
        gap = d_ap - d_an
        found = tl.where(gap + margin <= 0.0, tl.zeros_like(gap), gap * 0.0 + 1.0)  # a NaN stays one
    return found


def columns_together(rows: Tensor) -> Tensor:
    """Rows of any stride, in unit column stride."""
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def row_stride(rows: Tensor) -> int:
    return rows.stride(0) if rows.shape[0] > 1 else 0


def width(*sets: Tensor) -> int:
    """The largest vector, up to 16 bytes, that divides rows and row strides evenly."""
    return math.gcd(16 // sets[0].element_size(), sets[0].shape[1], *(row_stride(rows) for rows in sets))


def shortened(most: int, length: int) -> int:
    """A power of 2 up to ``most``, no larger than it takes to hold ``length``."""
    return min(most, triton.next_power_of_2(length))


def contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if x is None else x.contiguous() for x in tensors)
