"""Triton kernel of the attack step: one launch, in which a program moves one sample.

A sample that fits into one tile stays in registers; a larger one is read again for every quantity that the step
needs of the whole sample: the largest entry and the norm of its gradient, the l1 rule's smallest entry that moves, the
distance from the clean sample. Every coordinate is computed anew from the inputs and written in the last pass, so
that the result may lie where x does.

Sums of squares are taken as they are where they can neither overflow nor lose digits, else times a power of 2.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.triton_common import on

LINF, L2, L1, UNIT, NEWTON = (tl.constexpr(i) for i in range(5))  # csrc/attack/attack.h
GAP_MARGIN = tl.constexpr(1e-4)  # reference.GAP_MARGIN
INF = tl.constexpr(float("inf"))
TILE, SHORT_TILE = 4096, 2048  # coordinates that a program holds; the short tile where each keeps more alive

# Integers that change from call to call must not each compile a kernel of their own. They carry no divisibility by 16
# either; WIDTH does that: it divides the size of a sample, which is passed divided by it.
_jit = triton.jit(do_not_specialize=["length", "period", "top"])


@triton.jit
def _within(value, low, high):
    """Clipped; a bound of NaN binds nothing, and NaN stays."""
    value = tl.where(value < low, low, value)
    return tl.where(value > high, high, value)


@triton.jit
def _quotient(a, b):
    """a/b with its last bit, which Triton's fp32 division lacks."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def _root(square):
    return tl.sqrt(square) if square.dtype == tl.float64 else tl.sqrt_rn(square)


@triton.jit
def _image(image, kept, first, length, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """Coordinates first … first + N of a sample [N], 0 behind the last one."""
    if kept is None:
        e = first + tl.arange(0, N)
        values = tl.load(image + e, mask=e < length * WIDTH, other=0.0).to(ACC)
    else:
        values = kept
    return values


@triton.jit
def _bound(each, one, first, length, period, LAST: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """The bound of every coordinate [N], or the one of all."""
    if each is None:
        bound = one
    else:
        e = first + tl.arange(0, N)
        channel = e % period if LAST else e // period
        bound = tl.load(each + channel, mask=e < length * WIDTH, other=0.0)
    return bound


@triton.jit
def _limits(bounds, first, length, LAST: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """Lower and upper bound of coordinates."""
    lowers, lower, uppers, upper, period = bounds
    low = _bound(lowers, lower, first, length, period, LAST, N, WIDTH)
    return low, _bound(uppers, upper, first, length, period, LAST, N, WIDTH)


@triton.jit
def _velocity(images, kept, momentum, first, length, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """What the step follows [N]: the gradient, or decay · velocity + g/mean|g|."""
    _, grad, velocity = images
    _, kept_g, kept_v = kept
    decay, scale, inverse_mean = momentum
    g = _image(grad, kept_g, first, length, ACC, N, WIDTH)
    if velocity is not None:
        v = _image(velocity, kept_v, first, length, ACC, N, WIDTH)
        g = decay * v + (g * scale) * inverse_mean
    return g


@triton.jit
def _open(x, g, reach, low, high):
    """0 for coordinates that stand at a bound and would leave through it."""
    climb = tl.where(reach > 0.0, g, tl.where(reach < 0.0, -g, 0.0))
    return tl.where(((x <= low) & (climb < 0.0)) | ((x >= high) & (climb > 0.0)), 0.0, g)


@triton.jit
def _direction(
    images, kept, momentum, bounds, reach, first, length,
    PROJECT: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The velocity without blocked coordinates [N]."""
    g = _velocity(images, kept, momentum, first, length, ACC, N, WIDTH)
    if PROJECT:
        x = _image(images[0], kept[0], first, length, ACC, N, WIDTH)
        low, high = _limits(bounds, first, length, LAST, N, WIDTH)
        g = _open(x, g, reach, low, high)
    return g


@triton.jit
def _sum_of_sizes(grad, kept, scale, end, length, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """max|g|, +inf where one is not finite, and Σ|g · scale|."""
    peak = tl.zeros([N], ACC)
    total = tl.zeros([N], ACC)
    for first in range(0, end, N):
        size = tl.abs(_image(grad, kept, first, length, ACC, N, WIDTH))
        peak = tl.maximum(peak, tl.where(size < INF, size, INF))
        total += size * scale
    return tl.max(peak, 0), tl.sum(total, 0)


@triton.jit
def _sum_of_squares(
    images, kept, momentum, bounds, reach, scale, end, length,
    PROJECT: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """max|v|, +inf where one is not finite; the same and Σ(v · scale)² without blocked coordinates."""
    whole = tl.zeros([N], ACC)
    peak = tl.zeros([N], ACC)
    total = tl.zeros([N], ACC)
    for first in range(0, end, N):
        g = _velocity(images, kept, momentum, first, length, ACC, N, WIDTH)
        size = tl.abs(g)
        whole = tl.maximum(whole, tl.where(size < INF, size, INF))
        if PROJECT:
            x = _image(images[0], kept[0], first, length, ACC, N, WIDTH)
            low, high = _limits(bounds, first, length, LAST, N, WIDTH)
            size = tl.abs(_open(x, g, reach, low, high))
            peak = tl.maximum(peak, tl.where(size < INF, size, INF))
        size *= scale
        total += size * size
    whole = tl.max(whole, 0)
    return whole, tl.max(peak, 0) if PROJECT else whole, tl.sum(total, 0)


@triton.jit
def _is_extreme(peak):
    """Whether squares of numbers up to `peak` could overflow or lose digits that count."""
    EDGE: tl.constexpr = 2.0**400 if peak.dtype == tl.float64 else 2.0**50
    return (peak > 0.0) & (peak < INF) & ((peak > EDGE) | (peak < 1.0 / EDGE))


@triton.jit
def _taming(peak):
    """A power of 2 that brings `peak` near 1: at most to 4, and not below 1 unless it is subnormal."""
    KEY: tl.constexpr = tl.int64 if peak.dtype == tl.float64 else tl.int32
    BIT: tl.constexpr = 2**52 if peak.dtype == tl.float64 else 2**23
    TOP: tl.constexpr = 2046 if peak.dtype == tl.float64 else 254
    exponent = tl.minimum(peak.to(KEY, bitcast=True) // BIT, TOP - 1)
    return ((TOP - exponent) * BIT).to(peak.dtype, bitcast=True)


@triton.jit
def _threshold(
    images, kept, momentum, bounds, reach, top, end, length,
    PROJECT: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The top-th largest |v|, exactly, and how many are at least as large and not 0; by digits of 8 bits, no sorting.

    Bits of numbers that are not negative are ordered as the numbers are. Zeros behind the last coordinate only follow.
    """
    KEY: tl.constexpr = tl.int64 if reach.dtype == tl.float64 else tl.int32
    BITS: tl.constexpr = 64 if reach.dtype == tl.float64 else 32
    found = tl.zeros([], KEY)
    above = tl.zeros([], tl.int32)  # numbers above all that begin with the digits found
    ties = tl.zeros([], tl.int32)
    for digit in range(0, BITS // 8):
        shift = BITS - 8 - 8 * digit
        counts = tl.zeros([256], tl.int32)
        for first in range(0, end, N):
            g = _direction(
                images, kept, momentum, bounds, reach, first, length, PROJECT, LAST, ACC, N, WIDTH
            )  # fmt: skip
            key = tl.abs(g).to(KEY, bitcast=True) >> shift
            counts += tl.histogram((key & 255).to(tl.int32), 256, mask=(key >> 8) == found)
        bins = tl.arange(0, 256)
        reached = above + tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts >= top  # with all that follow a bin
        chosen = tl.max(tl.where(reached, bins, 0), 0)
        above += tl.sum(tl.where(bins > chosen, counts, 0), 0)
        ties = tl.sum(tl.where(bins == chosen, counts, 0), 0)
        found = found * 256 + chosen
    return found.to(ACC, bitcast=True), above + tl.where(found > 0, ties, 0)


@triton.jit
def _moved(x, g, towards, RULE: tl.constexpr):
    """x + step [N], saturated: the ball can pull back what is finite."""
    reach, scale, lift, threshold = towards
    LARGEST: tl.constexpr = 1.7976931348623157e308 if x.dtype == tl.float64 else 3.4028234663852886e38
    if RULE == LINF:
        step = tl.where(g > 0.0, reach, tl.where(g < 0.0, -reach, 0.0))
    elif RULE == L1:
        step = tl.where(g > 0.0, reach, tl.where(g < 0.0, -reach, 0.0))
        step = tl.where(tl.abs(g) >= threshold, step, 0.0)
    else:
        step = (g * scale * lift) * reach
    return _within(x + step, -LARGEST, LARGEST)


@triton.jit
def _from_clean(
    images, kept, momentum, bounds, reach, towards, x0, kept_0, scale, end, length,
    RULE: tl.constexpr, PROJECT: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, N: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """max|d| and Σ(|d| · scale)^p of the difference d from the clean sample after the step."""
    peak = tl.zeros([N], ACC)
    total = tl.zeros([N], ACC)
    for first in range(0, end, N):
        g = _direction(images, kept, momentum, bounds, reach, first, length, PROJECT, LAST, ACC, N, WIDTH)
        x = _image(images[0], kept[0], first, length, ACC, N, WIDTH)
        clean = _image(x0, kept_0, first, length, ACC, N, WIDTH)
        size = tl.abs(_moved(x, g, towards, RULE) - clean)
        peak = tl.maximum(peak, size)
        size *= scale
        total += size if RULE == L1 else size * size
    return tl.max(peak, 0), tl.sum(total, 0)


@triton.jit
def _shrinkage(
    images, kept, momentum, bounds, reach, towards, x0, kept_0, peak, radius, leaves, end, length,
    RULE: tl.constexpr, PROJECT: tl.constexpr, LAST: tl.constexpr, ACC: tl.constexpr, N: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """How far below the largest |d| the threshold τ of the projection on the l1 ball lies, by Newton's method.

    τ ← (Σ_{|d|>τ}|d| − r)/count, from peak − r, which is not above the solution, until the count no longer falls. In
    depths h = peak − |d| below the largest, which keep their digits and do not overflow: s ← (Σ_{h<s} h + r)/count.
    """
    depth = radius
    count = tl.full([], 2**31 - 1, tl.int32)
    falls = leaves
    while falls:
        total = tl.zeros([N], ACC)
        inside = tl.zeros([N], tl.int32)
        for first in range(0, end, N):
            g = _direction(images, kept, momentum, bounds, reach, first, length, PROJECT, LAST, ACC, N, WIDTH)
            x = _image(images[0], kept[0], first, length, ACC, N, WIDTH)
            clean = _image(x0, kept_0, first, length, ACC, N, WIDTH)
            h = peak - tl.abs(_moved(x, g, towards, RULE) - clean)
            counts = (h < depth) & (first + tl.arange(0, N) < length * WIDTH)
            total += tl.where(counts, h, 0.0)
            inside += counts.to(tl.int32)
        now = tl.sum(inside, 0)
        falls = (now < count) & (now > 0)
        depth = tl.where(
            falls, tl.minimum(_quotient(tl.sum(total, 0) + radius, tl.maximum(now, 1).to(ACC)), depth), depth
        )
        count = now
    return depth


@_jit
def attack_step_kernel(
    out, x, grad, x0, step_sizes, radii, gap, velocity, lowers, uppers, active, length, period, top,
    step_size: tl.float64, radius: tl.float64, lower: tl.float64, upper: tl.float64, decay: tl.float64,
    RULE: tl.constexpr, PROJECT: tl.constexpr, LAST: tl.constexpr, WHOLE: tl.constexpr, N: tl.constexpr,
    WIDTH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """One sample of `length` · WIDTH coordinates; WHOLE where N holds them. LARGEST: of the numbers of its dtype.

    A coordinate's channel is its position modulo `period` where LAST (channels vary fastest), else divided by it.
    """
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    sample = tl.program_id(0).to(tl.int64)
    here = sample * length * WIDTH
    # Without the annotation a Python float would come as fp32, without `full` it would lift everything to fp64.
    radius, decay = tl.full([], radius, ACC), tl.full([], decay, ACC)
    lower, upper = tl.full([], lower, ACC), tl.full([], upper, ACC)
    reach = tl.full([], step_size, ACC)
    if step_sizes is not None:
        reach = tl.load(step_sizes + sample)
    if gap is not None:
        reach *= tl.load(gap + sample) + tl.full([], GAP_MARGIN, ACC)
    moves = tl.abs(reach) < INF
    if active is not None:
        moves &= tl.load(active + sample) != 0
    if x0 is not None:
        if radii is not None:
            radius = tl.load(radii + sample)
        moves &= radius >= 0.0
        x0 += here
    if (moves == 0) & (out.to(tl.int64, bitcast=True) == x.to(tl.int64, bitcast=True)):
        return
    out += here
    x += here
    grad += here
    if velocity is not None:
        velocity += here

    # A sample that stays reads no gradient; its sums are 0.
    used = tl.where(moves, length, 0)
    end = used * WIDTH
    last = length * WIDTH
    images = (x, grad, velocity)
    kept = (None, None, None)
    kept_0 = None
    if WHOLE:
        end = N
        last = N
        kept_x = _image(x, None, 0, length, ACC, N, WIDTH)
        kept_g = _image(grad, None, 0, used, ACC, N, WIDTH)
        kept = (kept_x, kept_g, None)
        if velocity is not None:
            kept = (kept_x, kept_g, _image(velocity, None, 0, used, ACC, N, WIDTH))
        if x0 is not None:
            kept_0 = _image(x0, None, 0, used, ACC, N, WIDTH)
    bounds = (lowers, lower, uppers, upper, period)

    one = tl.full([], 1.0, ACC)
    momentum = (decay, one, one)
    if velocity is not None:
        peak, total = _sum_of_sizes(grad, kept[1], one, end, used, ACC, N, WIDTH)
        tame = one
        if _is_extreme(peak):
            tame = _taming(peak)
            _, total = _sum_of_sizes(grad, kept[1], tame, end, used, ACC, N, WIDTH)
        moves &= (peak > 0.0) & (peak < INF)
        momentum = (decay, tame, _quotient((length * WIDTH).to(ACC), tl.where(moves, total, 1.0)))
    whole, peak, total = _sum_of_squares(
        images, kept, momentum, bounds, reach, one, end, used, PROJECT, LAST, ACC, N, WIDTH
    )  # fmt: skip
    updated = tl.where(moves & (whole < INF), length, 0)
    moves &= (peak > 0.0) & (whole < INF)
    if WHOLE:
        # The direction takes the place of what it comes from, and registers are free for the rest.
        g = _direction(images, kept, momentum, bounds, reach, 0, used, PROJECT, LAST, ACC, N, WIDTH)
        if velocity is not None:
            e = tl.arange(0, N)
            v = _velocity(images, kept, momentum, 0, used, ACC, N, WIDTH)
            tl.store(velocity + e, v, mask=e < updated * WIDTH)
        images = (x, grad, None)
        kept = (kept[0], g, None)
    BLOCKS: tl.constexpr = PROJECT and not WHOLE

    towards = (reach, one, one, one)
    if RULE == L1:
        threshold, count = _threshold(
            images, kept, momentum, bounds, reach, top, end, used, BLOCKS, LAST, ACC, N, WIDTH
        )  # fmt: skip
        towards = (_quotient(reach, tl.maximum(count, 1).to(ACC)), one, one, threshold)
    elif RULE != LINF:
        # Two powers of 2 together bring the peak into [1, 2), also one that is subnormal: no quotient overflows.
        scale = _taming(peak)
        lift = _taming(peak * scale)
        if _is_extreme(peak):
            _, _, total = _sum_of_squares(
                images, kept, momentum, bounds, reach, scale, end, used, BLOCKS, LAST, ACC, N, WIDTH
            )  # fmt: skip
        else:
            total *= scale * scale
        total = tl.where(moves, total * (lift * lift), 1.0)
        per_entry = reach
        if RULE == NEWTON:
            quotient = _quotient(reach, tl.where(moves, peak, 1.0))
            moves &= tl.abs(quotient) < INF
            per_entry = quotient * _quotient(peak * scale * lift, total)
        else:
            per_entry = _quotient(reach, _root(total))
        towards = (per_entry, scale, lift, one)

    leaves = moves
    tame = one
    shrinks = one
    if x0 is not None and RULE != LINF:
        peak, total = _from_clean(
            images, kept, momentum, bounds, reach, towards, x0, kept_0, one, end, used,
            RULE, BLOCKS, LAST, ACC, N, WIDTH,
        )  # fmt: skip
        if RULE == L1:
            leaves &= total > radius
            shrinks = _shrinkage(
                images, kept, momentum, bounds, reach, towards, x0, kept_0, peak, radius, leaves, end, used,
                RULE, BLOCKS, LAST, ACC, N, WIDTH,
            )  # fmt: skip
        else:
            if _is_extreme(peak):
                tame = _taming(peak)
                _, total = _from_clean(
                    images, kept, momentum, bounds, reach, towards, x0, kept_0, tame, end, used,
                    RULE, BLOCKS, LAST, ACC, N, WIDTH,
                )  # fmt: skip
            distance = _root(total)
            leaves &= (distance > radius * tame) & (distance < INF)
            shrinks = _quotient(radius, tl.where(leaves, distance, 1.0))

    for first in range(0, last, N):
        e = first + tl.arange(0, N)
        x_tile = _image(x, kept[0], first, length, ACC, N, WIDTH)  # [N]
        g = _direction(images, kept, momentum, bounds, reach, first, used, BLOCKS, LAST, ACC, N, WIDTH)  # [N]
        low, high = _limits(bounds, first, length, LAST, N, WIDTH)
        if velocity is not None and not WHOLE:
            v = _velocity(images, kept, momentum, first, used, ACC, N, WIDTH)
            tl.store(velocity + e, v, mask=e < updated * WIDTH)
        moved = _moved(x_tile, g, towards, RULE)
        if x0 is not None:
            clean = _image(x0, kept_0, first, used, ACC, N, WIDTH)  # [N]
            if RULE == LINF:
                moved = _within(moved, clean - radius, clean + radius)
            else:
                d = moved - clean
                if RULE == L1:
                    rest = shrinks - (peak - tl.abs(d))
                    rest = tl.where(rest > 0.0, rest, 0.0)
                    d = tl.where(d < 0.0, -rest, rest)
                else:
                    d = (d * tame) * shrinks
                moved = tl.where(leaves, clean + d, moved)
        moved = _within(_within(moved, low, high), -LARGEST, LARGEST)
        if x0 is not None:
            moved = tl.where(radius == 0.0, clean, moved)
        tl.store(out + e, tl.where(moves, moved, x_tile).to(out.dtype.element_ty), mask=e < length * WIDTH)


def launch_step(
    out: Tensor, x: Tensor, grad: Tensor, x0: Tensor | None, step_sizes: Tensor | None, radii: Tensor | None,
    gap: Tensor | None, velocity: Tensor | None, lowers: Tensor | None, uppers: Tensor | None, active: Tensor | None,
    rule: int, step_size: float, radius: float, lower: float, upper: float, decay: float, project: bool, top: int,
) -> None:  # fmt: skip
    """One step of every sample into ``out``, as amkd_fast/ops/schemas.py describes it."""
    if x.numel() == 0:
        return
    size = x[0].numel()
    is_short = x.dtype == torch.float64 or (rule == L1.value and velocity is not None)
    n = min(max(triton.next_power_of_2(size), 256), SHORT_TILE if is_short else TILE)
    if size > 2**31 - n:
        raise ValueError(f"x.shape={tuple(x.shape)}: the Triton kernel indexes at most {2**31 - n} numbers a sample")
    active = None if active is None else active.contiguous()
    is_last = not x.is_contiguous()
    period = x.shape[1] if is_last else math.prod(x.shape[2:])
    w = math.gcd(16 // x.element_size(), size)
    warps = n // 256  # 8 coordinates a thread, which are 16 bytes or more
    # Without a bound of its own ptxas spills a register or two to make room for one more block.
    is_plain = rule == LINF.value and not is_short and not project and velocity is None
    without_spills = {} if is_plain else {"maxnreg": 128 if warps == 16 else 255}
    # The interpreter truncates where a GPU rounds to bf16, so there the kernel stores fp32 and torch rounds.
    truncates = backends.INTERPRETING and x.dtype == torch.bfloat16
    into = torch.empty_like(x, dtype=torch.float32) if truncates else out
    with on(x):
        attack_step_kernel[(x.shape[0],)](
            into, x, grad, x0, step_sizes, radii, gap, velocity, lowers, uppers, active, size // w, period, top,
            step_size, radius, lower, upper, decay,
            RULE=rule, PROJECT=project, LAST=is_last, WHOLE=size <= n, N=n, WIDTH=w, LARGEST=torch.finfo(x.dtype).max,
            num_warps=warps, **without_spills,
        )  # fmt: skip
    if truncates:
        out.copy_(into)
