"""What the Triton kernels of several KL losses share: a forward divergence tile by tile, plans of tiles, the last sum.

A program holds R whole rows. Their first N columns stay in registers; the others, of longer rows, are read again for
each look at the row, from a cache. Exponents are in base 2: a scale has log2(e)/T in it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast.ops.kl.triton import LN2, LOG2E, MOST_PROGRAMS


@triton.jit
def load_columns(base, stride, row, column, classes, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """Logits [R, N] of rows [R] and columns [N], −inf behind the last class."""
    pointers = base + row[:, None] * stride * WIDTH + column[None, :]
    return tl.load(pointers, mask=(column < classes * WIDTH)[None, :], other=float("-inf")).to(ACC)


@triton.jit
def store_columns(base, row, column, values, rows, classes, WIDTH: tl.constexpr):
    """Values [R, N] into a contiguous tensor; rows [R] from `rows` on are left out."""
    pointers = base + row[:, None] * classes * WIDTH + column[None, :]
    tl.store(pointers, values, mask=(row < rows)[:, None] & (column < classes * WIDTH)[None, :])


@triton.jit
def shift_of(max):
    """What to subtract for a maximum: −inf − (−inf) would make NaN of a row or tile without any class."""
    return tl.where(max == float("-inf"), 0.0, max)


@triton.jit
def divergence_sums(from_s, from_t, scale_s, scale_t):
    """2^u and 2^v of a tile [R, N] and its Σ 2^u, Σ 2^v, Σ 2^v (v − u) [R], from logits minus maxima."""
    u, v = from_s * scale_s, from_t * scale_t
    e_s, e_t = tl.exp2(u), tl.exp2(v)
    # A probability of 0 contributes 0, also against a logit of −inf; a NaN makes the other sums NaN.
    cross = tl.sum(e_t * tl.where(e_t > 0.0, v - u, 0.0), 1)
    return e_s, e_t, tl.sum(e_s, 1), tl.sum(e_t, 1), cross


@triton.jit
def finish_divergence(sum_s, sum_t, cross):
    """Divergence and log-sums of rows [R], NaN for one without any class."""
    nan = float("nan")
    sum_s, sum_t = tl.where(sum_s > 0.0, sum_s, nan), tl.where(sum_t > 0.0, sum_t, nan)
    # One logarithm of the ratio is exact where both sums are large; the difference of two is not.
    value = (cross / sum_t + tl.log2(sum_s / sum_t)) * LN2
    return value, tl.log2(sum_s) * LN2, tl.log2(sum_t) * LN2


@triton.jit
def probability(logits, max, log_sum, scale):
    """σ of logits [R, N] from the statistics of their rows [R] and a scale that fits beside either."""
    return tl.exp2((logits - max[:, None]) * scale - (log_sum * LOG2E)[:, None])


@triton.jit
def kl_rows_total_kernel(parts, out, total, programs, P: tl.constexpr, COUNT: tl.constexpr):
    """out[i] = Σ parts[i, program]; of two sums `total` gets the mean. One program, and so a fixed order."""
    program = tl.arange(0, P)
    both = tl.sum(tl.load(parts + program, mask=program < programs, other=0.0), 0)
    tl.store(out, both)
    if COUNT == 2:
        second = tl.sum(tl.load(parts + programs + program, mask=program < programs, other=0.0), 0)
        tl.store(out + 1, second)
        tl.store(total, 0.5 * (both + second))


def forward_plan(rows: int, classes: int, dtype: torch.dtype, tensors: int) -> dict:
    """Tile sizes by shape and dtype alone, so that a result does not depend on the GPU."""
    tile = 8192 // tensors // (2 if dtype == torch.float64 else 1)  # elements of each tensor in registers
    n = min(max(triton.next_power_of_2(classes), 8), tile)
    # What one program reads in a few tiles needs no second launch, which would cost more than the idle multiprocessors.
    alone = rows * n <= 8 * tile and classes <= n
    r = min(max((tile if alone else tile // 4) // n, 1), triton.next_power_of_2(rows))
    programs = 1 if alone else min(triton.cdiv(rows, r), MOST_PROGRAMS)
    return {"N": n, "R": r, "CHUNKS": triton.cdiv(classes, n), "programs": programs}


def backward_plan(rows: int, classes: int, dtype: torch.dtype) -> dict:
    """Tiles [R, N] of a gradient."""
    tile = 1024 if dtype == torch.float64 else 2048
    n = min(max(triton.next_power_of_2(classes), 8), tile)
    return {"N": n, "R": min(tile // n, triton.next_power_of_2(rows)), "CHUNKS": triton.cdiv(classes, n)}


def row_stride(logits: Tensor) -> int:
    return logits.stride(0) if logits.shape[0] > 1 else 0


def columns_together(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def width(tensors: tuple[Tensor, ...]) -> int:
    """The largest vector, up to 16 bytes, that divides classes and row strides evenly."""
    return math.gcd(16 // tensors[0].element_size(), tensors[0].shape[1], *map(row_stride, tensors))
