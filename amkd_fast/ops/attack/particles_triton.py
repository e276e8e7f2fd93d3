"""The operator `amkd_fast::attack_svgd_triton`: what the particles of an image weigh for each other, and their steps.

Two launches. A program of the first has an image: each particle's distances from all others in one sweep, then the
median: few by their ranks, more by bisection of its bits, which order numbers that are not negative as the numbers
themselves. A program of the second has some particles of an image. It writes before it knows whether they move, and
takes back those that do not.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.attack.operators import work_dtype
from amkd_fast.ops.attack.triton_step import INF, _limits, _quotient, _within
from amkd_fast.ops.triton_common import on

TILE, SHORT_TILE = 2048, 1024  # numbers of all particles together that a program has in a register at a time
ROWS = 4  # particles of a program
_jit = triton.jit(do_not_specialize=["length", "period", "count"])


@triton.jit
def _finite(values):
    """Whether all numbers of each particle [N, M] are."""
    return tl.max(tl.where(tl.abs(values) < INF, 0, 1), 1) == 0


@triton.jit
def _median(square, pairs, number, N: tl.constexpr):
    """The lower median of those `number` of the [N, N] that `pairs` marks; 0 of none."""
    flat = tl.reshape(square, [N * N])
    marked = tl.reshape(pairs.to(tl.int32), [N * N]) > 0
    if N <= 8:
        e = tl.arange(0, N * N)
        before = (flat[None, :] < flat[:, None]) | ((flat[None, :] == flat[:, None]) & (e[None, :] < e[:, None]))
        rank = tl.sum((before & marked[None, :]).to(tl.int32), 1)
        median = tl.sum(tl.where(marked & (rank == (number - 1) // 2), flat, 0.0), 0)
    else:
        # Bit by bit: the largest number that fewer than the wanted ones lie below.
        KEY: tl.constexpr = tl.int64 if square.dtype == tl.float64 else tl.int32
        BITS: tl.constexpr = 63 if square.dtype == tl.float64 else 31
        keys = flat.to(KEY, bitcast=True)
        found = tl.zeros([], KEY)
        step = tl.full([], 1, KEY) << (BITS - 1)
        for _ in range(0, BITS):
            below = tl.sum((marked & (keys < found + step)).to(tl.int32), 0)
            found = tl.where(below < (number + 1) // 2, found + step, found)
            step = step >> 1
        median = found.to(square.dtype, bitcast=True)
    return median


@_jit
def attack_svgd_weights_kernel(
    weights, x, grad, count, length, bandwidth: tl.float64,
    MEDIAN: tl.constexpr, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """Weights of an image, [2, count, count]: of the gradients, 0 on the diagonal for who is not there, and of x."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    image = tl.program_id(0).to(tl.int64)
    size = (length * WIDTH).to(tl.int64)
    x += image * count * size
    grad += image * count * size
    row = tl.arange(0, N)
    here = row < count
    place = row[:, None] * size

    usable = here
    for first in range(0, length * WIDTH, M):
        e = first + tl.arange(0, M)
        inside = here[:, None] & (e < length * WIDTH)[None, :]
        usable &= _finite(tl.load(x + place + e[None, :], mask=inside, other=0.0).to(ACC))
        usable &= _finite(tl.load(grad + place + e[None, :], mask=inside, other=0.0).to(ACC))
    square = tl.zeros([N, N], ACC)
    for j in range(0, count):
        total = tl.zeros([N, M], ACC)
        for first in range(0, length * WIDTH, M):
            e = first + tl.arange(0, M)
            within = e < length * WIDTH
            own = tl.load(x + place + e[None, :], mask=here[:, None] & within[None, :], other=0.0).to(ACC)
            other = tl.load(x + j * size + e, mask=within, other=0.0).to(ACC)
            apart = own - other[None, :]
            total += apart * apart
        square = tl.where((row == j)[None, :], tl.sum(total, 1)[:, None], square)

    both = usable[:, None] & usable[None, :]
    members = tl.sum(usable.to(tl.int32), 0)
    h = tl.full([], bandwidth, ACC)
    if MEDIAN:
        pairs = both & (row[:, None] < row[None, :])
        h = _median(square, pairs, members * (members - 1) // 2, N)
        h = tl.where(members > 1, _quotient(h, tl.log(tl.maximum(members, 2).to(ACC))), 0.0)
    share = _quotient(tl.full([], 1.0, ACC), tl.maximum(members, 1).to(ACC))
    repels = h > 0.0
    positive = tl.where(repels, h, 1.0)
    near = tl.where(square < INF, tl.exp(-(square / positive)), 0.0)
    near = tl.where(repels, near, 0.0)
    near = tl.where(both, tl.where(square == 0.0, 1.0, near), 0.0)
    own = row[:, None] == row[None, :]
    push = tl.where(own, 0.0, tl.minimum(2.0 * near / positive, LARGEST) * share)
    push = tl.where(repels, push, 0.0)
    push = tl.where(own, tl.sum(push, 1)[:, None], -push)
    at = weights + image * 2 * count * count + row[:, None] * count + row[None, :]
    known = here[:, None] & here[None, :]
    tl.store(at, near * share, mask=known)
    tl.store(at + count * count, push, mask=known)


@_jit
def attack_svgd_step_kernel(
    out, x, grad, x0, weights, step_sizes, radii, lowers, uppers, count, length, period,
    step_size: tl.float64, radius: tl.float64, lower: tl.float64, upper: tl.float64,
    LAST: tl.constexpr, R: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr, LARGEST: tl.constexpr,
):  # fmt: skip
    """R particles of an image of `length` · WIDTH numbers."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    KEY: tl.constexpr = tl.int64 if x.dtype.element_ty == tl.float64 else tl.int32
    image = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * R + tl.arange(0, R)
    here = row < count
    size = (length * WIDTH).to(tl.int64)
    start = image * count * size
    out += start
    x += start
    grad += start
    x0 += image * size
    weights += image * 2 * count * count
    place = row[:, None] * size
    reach, radius = tl.full([], step_size, ACC), tl.full([], radius, ACC)
    lower, upper = tl.full([], lower, ACC), tl.full([], upper, ACC)
    if step_sizes is not None:
        reach = tl.load(step_sizes + image)
    if radii is not None:
        radius = tl.load(radii + image)
    bounds = (lowers, lower, uppers, upper, period)
    wanted = (tl.abs(reach) < INF) & (radius >= 0.0)

    # Any origin of the positions will do, if it is finite.
    origin = tl.zeros([], tl.int32)
    for j in range(0, count):
        last = count - 1 - j
        origin = tl.where(tl.load(weights + last * (count + 1)) > 0.0, last, origin)
    source = x + origin * size

    largest = tl.zeros([R, M], KEY)
    for first in range(0, length * WIDTH, M):
        e = first + tl.arange(0, M)
        within = e < length * WIDTH
        inside = here[:, None] & within[None, :]
        centre = tl.load(source + e, mask=within, other=0.0).to(ACC)
        phi = tl.zeros([R, M], ACC)
        for j in range(0, count):
            if tl.load(weights + j * (count + 1)) > 0.0:
                pull = tl.load(weights + j * count + row, mask=here, other=0.0)
                push = tl.load(weights + count * count + j * count + row, mask=here, other=0.0)
                at = j * size + e
                g = tl.load(grad + at, mask=within, other=0.0).to(ACC)
                position = tl.load(x + at, mask=within, other=0.0).to(ACC) - centre
                phi += pull[:, None] * g[None, :] + push[:, None] * position[None, :]
        largest = tl.maximum(largest, tl.abs(phi).to(KEY, bitcast=True))
        moved = tl.load(x + place + e[None, :], mask=inside, other=0.0).to(ACC)
        moved += tl.where(phi > 0.0, reach, tl.where(phi < 0.0, -reach, 0.0))
        clean = tl.load(x0 + e, mask=within, other=0.0).to(ACC)
        low, high = _limits(bounds, first, length, LAST, M, WIDTH)
        moved = _within(moved, (clean - radius)[None, :], (clean + radius)[None, :])
        if lowers is not None:
            low = low[None, :]
        if uppers is not None:
            high = high[None, :]
        moved = _within(_within(moved, low, high), -LARGEST, LARGEST)
        moved = tl.where(radius == 0.0, clean[None, :], moved)
        tl.store(out + place + e[None, :], moved.to(out.dtype.element_ty), mask=inside)

    # Bits of what is not finite are above those of all other numbers.
    peak = tl.where(wanted, tl.max(largest, 1).to(ACC, bitcast=True), 0.0)
    stays = here & (((peak > 0.0) & (peak < INF)) == 0)
    if tl.max(stays.to(tl.int32), 0) > 0:
        tl.debug_barrier()  # another thread may have written there
        for first in range(0, length * WIDTH, M):
            e = first + tl.arange(0, M)
            inside = stays[:, None] & (e < length * WIDTH)[None, :]
            as_before = tl.load(x + place + e[None, :], mask=inside, other=0.0)
            tl.store(out + place + e[None, :], as_before.to(out.dtype.element_ty), mask=inside)


def launch_svgd(
    out: Tensor, particles: Tensor, grad: Tensor, x0: Tensor, step_sizes: Tensor | None, radii: Tensor | None,
    lowers: Tensor | None, uppers: Tensor | None, step_size: float, radius: float, lower: float, upper: float,
    bandwidth: float,
) -> None:  # fmt: skip
    """One step into ``out``, as amkd_fast/ops/schemas.py describes it."""
    if x0.numel() == 0:
        return
    images, count = particles.shape[:2]
    size = x0[0].numel()
    if size > 2**31 - TILE:
        raise ValueError(
            f"x0.shape={tuple(x0.shape)}: the Triton kernel indexes at most {2**31 - TILE} numbers an image"
        )
    is_last = not x0.is_contiguous()
    period = x0.shape[1] if is_last else math.prod(x0.shape[2:])
    w = math.gcd(16 // particles.element_size(), size)
    work = work_dtype(particles.dtype)
    tile = SHORT_TILE if work == torch.float64 else TILE
    weights = torch.empty((images, 2, count, count), dtype=work, device=particles.device)
    n = max(triton.next_power_of_2(count), 2)
    r = min(n, ROWS)
    # The interpreter truncates where a GPU rounds to bf16, so there the kernel stores fp32 and torch rounds.
    truncates = backends.INTERPRETING and particles.dtype == torch.bfloat16
    into = torch.empty_like(particles, dtype=torch.float32) if truncates else out
    # Without a bound of its own ptxas spills a register or two to make room for one more block.
    with on(particles):
        attack_svgd_weights_kernel[(images,)](
            weights, particles, grad, count, size // w, bandwidth,
            MEDIAN=bandwidth == 0.0, N=n, M=tile // n, WIDTH=w, LARGEST=torch.finfo(work).max,
            num_warps=8, maxnreg=128,
        )  # fmt: skip
        attack_svgd_step_kernel[(images, triton.cdiv(count, r))](
            into, particles, grad, x0, weights, step_sizes, radii, lowers, uppers, count, size // w, period,
            step_size, radius, lower, upper,
            LAST=is_last, R=r, M=tile // r, WIDTH=w, LARGEST=torch.finfo(particles.dtype).max,
            num_warps=8, maxnreg=128,
        )  # fmt: skip
    if truncates:
        out.copy_(into)
