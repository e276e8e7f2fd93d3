"""Triton kernels of the attack family over rows of logits: the objective, the choice of bases, the draw of targets.

A program takes R rows, which stay in registers where N columns hold them; a longer row is read again for each figure.
The objective and the draw are one launch. So is the choice of bases of a batch that one program reads in a few tiles;
a larger one takes three: keys, ranks, and the rows that were chosen.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops.attack.operators import work_dtype
from amkd_fast.ops.attack.triton_step import INF
from amkd_fast.ops.triton_common import on, philox_words

CROSS_ENTROPY, BOUNDARY, DLR = (tl.constexpr(i) for i in range(3))  # operators.LOSSES
KEYS, RANKS, CHOICE, ALL = (tl.constexpr(i) for i in range(4))  # what a launch of attack_bases_kernel does
DLR_FLOOR = tl.constexpr(1e-12)  # objective.DLR_FLOOR
FAR = tl.constexpr(2**31 - 1)  # above every column

# As in triton_step: WIDTH divides the row strides and the number of classes.
_jit = triton.jit(do_not_specialize=["rows", "classes", "stride", "student_stride", "teacher_stride", "limit", "seed"])


@triton.jit
def _load(logits, first, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """Logits [R, N] from column `first` on, −inf behind the last class."""
    base, stride, row, classes = logits
    column = first + tl.arange(0, N)
    pointers = base + row[:, None] * stride * WIDTH + column[None, :]
    return tl.load(pointers, mask=(column < classes * WIDTH)[None, :], other=float("-inf")).to(ACC)


@triton.jit
def _tile(logits, kept, first, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """A tile of logits [R, N], from registers where it is kept."""
    return _load(logits, first, ACC, N, WIDTH) if kept is None else kept


@triton.jit
def _largest(logits, kept, end, a, b, c, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """The largest logit of rows and its column [R] as torch.max has them: the first NaN, else the lowest of equals.

    Columns a, b and c [R] do not count.
    """
    row, classes = logits[2], logits[3]
    best = tl.full([row.shape[0], N], -INF, ACC)
    where = tl.full([row.shape[0], N], FAR, tl.int32)
    for first in range(0, end, N):
        z = _tile(logits, kept, first, ACC, N, WIDTH)
        column = first + tl.arange(0, N)[None, :]
        counts = (column < classes * WIDTH) & (column != a[:, None]) & (column != b[:, None]) & (column != c[:, None])
        rises = (z > best) | (where == FAR) | ((z != z) & (best == best))
        best, where = tl.where(counts & rises, z, best), tl.where(counts & rises, column, where)
    nan = best != best
    first_nan = tl.min(tl.where(nan, where, FAR), 1)
    top = tl.max(tl.where(nan, -INF, best), 1)
    index = tl.min(tl.where(best == top[:, None], where, FAR), 1)
    has_nan = first_nan != FAR
    return tl.where(has_nan, float("nan"), top), tl.where(has_nan, first_nan, index)


@triton.jit
def _others(logits, kept, end, top, at, ACC: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """Σ exp(z − top) over the classes of rows [R] besides the top's, ``at``; NaN where the softmax is.

    The top's own term is 1: next to it those of a confident row would be lost.
    """
    total = tl.zeros([top.shape[0], N], ACC)
    for first in range(0, end, N):
        below = _tile(logits, kept, first, ACC, N, WIDTH) - top[:, None]
        column = first + tl.arange(0, N)[None, :]
        total += tl.where(column == at[:, None], 0.0, tl.exp(below))
    return tl.sum(total, 1) + (top - top)


@triton.jit
def _log1p(x):
    """log(1 + x) for x ≥ 0: of the rounded sum, and of what was rounded off."""
    total = 1.0 + x
    return tl.log(total) + (x - (total - 1.0)) / total


@triton.jit
def _named(logits, classes_of, row, there, ACC: tl.constexpr, WIDTH: tl.constexpr):
    """The class that a tensor names for rows [R], −1 where it is out of range, and its logit, NaN there."""
    base, stride, place, classes = logits
    named = tl.load(classes_of + row, mask=there, other=-1)
    inside = (named >= 0) & (named < classes * WIDTH)
    z = tl.load(base + place * stride * WIDTH + named, mask=inside, other=float("nan")).to(ACC)
    return tl.where(inside, named, -1).to(tl.int32), z


@triton.jit
def _probability(z, top, rest, is_top):
    """p of logits, and 1 − p, of which the rounding of a p close to 1 would leave few digits."""
    total = 1.0 + rest
    p = tl.exp(z - top) / total
    return p, tl.where(is_top, rest / total, 1.0 - p)


@triton.jit
def _hot(column, index):
    """1 at a class, by column [R, N] and class [R]."""
    return tl.where(column == index[:, None], 1.0, 0.0)


@triton.jit
def _slope(z, column, figures, LOSS: tl.constexpr, SOFTMAX: tl.constexpr, TARGETED: tl.constexpr):
    """The gradient at columns [R, N] with logits z, before those of rows that are inert become 0."""
    top, rest, label, rival, value, width, places, at_label, at_rival = figures
    if LOSS == CROSS_ENTROPY:
        g = tl.exp(z - top[:, None]) / (1.0 + rest)[:, None]
        if TARGETED:
            g = -g
        g = tl.where(column == label[:, None], at_label[:, None], g)
    else:
        g = _hot(column, rival) - _hot(column, label)
        if LOSS == DLR:
            one, three, four = places
            spread = _hot(column, one)
            if TARGETED:
                spread -= 0.5 * (_hot(column, three) + _hot(column, four))
            else:
                spread -= _hot(column, three)
            g = (g - value[:, None] * spread) / width[:, None]
        elif SOFTMAX:
            g = tl.exp(z - top[:, None]) / (1.0 + rest)[:, None] * -value[:, None]
            g = tl.where(column == rival[:, None], at_rival[:, None], g)
            g = tl.where(column == label[:, None], at_label[:, None], g)
    return g


@_jit
def attack_objective_kernel(
    logits, labels, targets, value, grad, prediction, active, rows, classes, stride,
    LOSS: tl.constexpr, SOFTMAX: tl.constexpr, TARGETED: tl.constexpr, WHOLE: tl.constexpr, R: tl.constexpr,
    N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """R rows: value, gradient, prediction and whether they still have to move."""
    ACC: tl.constexpr = value.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)  # [R]
    there = row < rows
    # Rows behind the last one repeat it: no mask on the rows of a load.
    z_rows = (logits, stride, tl.minimum(row, rows - 1), classes)
    kept = None
    end = classes * WIDTH
    if WHOLE:
        kept = _load(z_rows, 0, ACC, N, WIDTH)  # [R, N]
        end = N
    nothing = tl.full([R], -1, tl.int32)
    top, first = _largest(z_rows, kept, end, nothing, nothing, nothing, ACC, N, WIDTH)
    label, z_label = _named(z_rows, labels, row, there, ACC, WIDTH)
    # A NaN anywhere and a class out of range make the value NaN, and the row inert.
    fault = tl.where((top != top) | (label < 0), float("nan"), tl.zeros([R], ACC))
    target = nothing
    if targets is not None:
        target, z_target = _named(z_rows, targets, row, there, ACC, WIDTH)
        fault = tl.where(target < 0, float("nan"), fault)
    elif LOSS != CROSS_ENTROPY:
        z_target, target = _largest(z_rows, kept, end, label, label, label, ACC, N, WIDTH)

    rest = top
    width = top
    at_label = top
    at_rival = top
    places = (first, first, first)
    wanted = label
    if LOSS == CROSS_ENTROPY:
        wanted, z_wanted = (target, z_target) if TARGETED else (label, z_label)
        rest = _others(z_rows, kept, end, top, first, ACC, N, WIDTH)
        found = _log1p(rest) - (z_wanted - top)
        _, left = _probability(z_wanted, top, rest, wanted == first)
        at_label = -left
        if TARGETED:
            found = -found
            at_label = left
    elif LOSS == BOUNDARY:
        if SOFTMAX:
            rest = _others(z_rows, kept, end, top, first, ACC, N, WIDTH)
            up, not_up = _probability(z_target, top, rest, target == first)
            down, not_down = _probability(z_label, top, rest, label == first)
            found = up - down
            # p · (±1 − value) for the two
            at_rival = up * (not_up + down)
            at_label = tl.where(label == target, 0.0, -down * (not_down + up))
        else:
            found = z_target - z_label
    else:
        _, second = _largest(z_rows, kept, end, first, first, first, ACC, N, WIDTH)
        z_below, third = _largest(z_rows, kept, end, first, second, second, ACC, N, WIDTH)
        fourth = third
        if TARGETED:
            z_fourth, fourth = _largest(z_rows, kept, end, first, second, third, ACC, N, WIDTH)
            z_below = 0.5 * (z_below + z_fourth)
        width = top - z_below + tl.full([], DLR_FLOOR, ACC)
        found = (z_target - z_label) / width
        places = (first, third, fourth)
    found += fault
    usable = tl.abs(found) < INF
    figures = (top, rest, wanted, target, found, width, places, at_label, at_rival)
    if LOSS == DLR:
        # The only gradient that can overflow where the value does not; it does at one of these.
        named = (label, target, first, places[1], places[2])
        for i in tl.static_range(5):
            steepest = _slope(tl.zeros([R, 1], ACC), named[i][:, None], figures, LOSS, SOFTMAX, TARGETED)
            usable &= tl.max(tl.abs(steepest), 1) < INF

    tl.store(value + row, found, mask=there)
    tl.store(prediction + row, first.to(tl.int64), mask=there)
    unfinished = first != target if TARGETED else first == label
    tl.store(active + row, unfinished & usable, mask=there)
    for start in range(0, end, N):
        z = _tile(z_rows, kept, start, ACC, N, WIDTH)
        column = start + tl.arange(0, N)[None, :]
        g = tl.where(usable[:, None], _slope(z, column, figures, LOSS, SOFTMAX, TARGETED), 0.0)  # [R, N]
        pointers = grad + row[:, None] * classes * WIDTH + column
        tl.store(pointers, g.to(grad.dtype.element_ty), mask=there[:, None] & (column < classes * WIDTH))


@triton.jit
def _uniform(seeds, seed, counter):
    """Numbers `counter` [R] of the seed's Philox stream in float64, as amkd_fast.philox makes them."""
    a, b, _, _ = philox_words(seeds, seed, counter, 0)
    return ((a.to(tl.int64) << 21) + (b >> 11).to(tl.int64)).to(tl.float64) * (2.0**-53)


@triton.jit
def _drawn(logits, base, uniform, WHOLE: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr):
    """The class that rows [R] draw with their uniform numbers by inversion, never `base`."""
    classes = logits[3]
    kept = None
    end = classes * WIDTH
    if WHOLE:
        kept = _load(logits, 0, tl.float64, N, WIDTH)  # [R, N]
        end = N
    top, second = _largest(logits, kept, end, base, base, base, tl.float64, N, WIDTH)
    total = tl.zeros_like(top)
    for first in range(0, end, N):
        total = tl.max(_cumulative(logits, kept, first, base, top, total, N, WIDTH), 1)
    threshold = uniform * total
    drawn = tl.zeros([top.shape[0]], tl.int32)
    before = tl.zeros_like(top)
    for first in range(0, end, N):
        cumulative = _cumulative(logits, kept, first, base, top, before, N, WIDTH)
        before = tl.max(cumulative, 1)
        drawn += tl.sum((cumulative <= threshold[:, None]).to(tl.int32), 1)
    # The second class where no other has a weight that is a number, and where a rounded sum passes the last one by.
    usable = (tl.abs(top) < INF) & (drawn < classes * WIDTH) & (drawn != base)
    return tl.where(usable, drawn, second).to(tl.int64)


@triton.jit
def _cumulative(logits, kept, first, base, top, before, N: tl.constexpr, WIDTH: tl.constexpr):
    """Cumulative weights of the classes of a tile [R, N], the base's 0, on top of those `before`."""
    z = _tile(logits, kept, first, tl.float64, N, WIDTH)
    column = first + tl.arange(0, N)[None, :]
    weight = tl.where(column == base[:, None], 0.0, tl.exp(z - top[:, None]))
    return tl.cumsum(weight, 1) + before[:, None]


@_jit
def attack_draw_kernel(
    logits, base, counters, seeds, drawn, rows, classes, stride, seed: tl.int64,
    WHOLE: tl.constexpr, R: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A class other than the base for R rows."""
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)  # [R]
    there = row < rows
    real = tl.minimum(row, rows - 1)
    left_out = tl.load(base + real)
    left_out = tl.where((left_out >= 0) & (left_out < FAR), left_out, -1).to(tl.int32)
    counter = real
    if counters is not None:
        counter = tl.load(counters + real)
    uniform = _uniform(seeds, seed, counter)
    found = _drawn((logits, stride, real, classes), left_out, uniform, WHOLE, N, WIDTH)
    tl.store(drawn + row, found, mask=there)


@triton.jit
def _disagreement(
    student, teacher, label, ACC: tl.constexpr, WHOLE: tl.constexpr, N: tl.constexpr, WIDTH: tl.constexpr
):
    """Σ (teacher − student)² of the probabilities of rows [R] besides their label's, −1 where a row is no base."""
    classes = teacher[3]
    end = classes * WIDTH
    kept_s, kept_t = None, None
    if WHOLE:
        kept_s = _load(student, 0, ACC, N, WIDTH)  # [R, N]
        kept_t = _load(teacher, 0, ACC, N, WIDTH)  # [R, N]
        end = N
    nothing = tl.full([label.shape[0]], -1, tl.int32)
    top_s, first_s = _largest(student, kept_s, end, nothing, nothing, nothing, ACC, N, WIDTH)
    top_t, first_t = _largest(teacher, kept_t, end, nothing, nothing, nothing, ACC, N, WIDTH)
    sum_s = 1.0 + _others(student, kept_s, end, top_s, first_s, ACC, N, WIDTH)
    sum_t = 1.0 + _others(teacher, kept_t, end, top_t, first_t, ACC, N, WIDTH)
    total = tl.zeros([label.shape[0], N], ACC)
    for first in range(0, end, N):
        s = tl.exp(_tile(student, kept_s, first, ACC, N, WIDTH) - top_s[:, None]) / sum_s[:, None]
        t = tl.exp(_tile(teacher, kept_t, first, ACC, N, WIDTH) - top_t[:, None]) / sum_t[:, None]
        column = first + tl.arange(0, N)[None, :]
        total += tl.where(column == label[:, None], 0.0, (t - s) * (t - s))
    found = tl.sum(total, 1)
    return tl.where((first_s == label) & (first_t == label) & (found < INF), found, -1.0)


@triton.jit
def _ranks(keys, key, row, rows, M: tl.constexpr):
    """How many rows come before rows [M]: those with a larger key, and with an equal one those above."""
    before = tl.zeros([M, M], tl.int32)
    for first in range(0, rows, M):
        other = first + tl.arange(0, M)
        theirs = tl.load(keys + other, mask=other < rows, other=-1.0)[None, :]
        above = other[None, :] < row[:, None]
        before += ((theirs > key[:, None]) | ((theirs == key[:, None]) & above)).to(tl.int32)
    return tl.sum(before, 1)


@_jit
def attack_bases_kernel(
    student, teacher, labels, seeds, keys, index, base, target, valid,
    rows, classes, student_stride, teacher_stride, limit, seed: tl.int64,
    STAGE: tl.constexpr, WHOLE: tl.constexpr, R: tl.constexpr, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One stage of the choice of bases, or, in one program, ALL of them; keys [B] and index [limit] carry over."""
    ACC: tl.constexpr = keys.dtype.element_ty
    if STAGE == KEYS or STAGE == ALL:  # noqa: SIM109 - Triton has no `in`
        for tile in range(tl.program_id(0), tl.cdiv(rows, R), tl.num_programs(0)):
            row = tile * R + tl.arange(0, R).to(tl.int64)  # [R]
            real = tl.minimum(row, rows - 1)
            label = tl.load(labels + real)
            label = tl.where((label >= 0) & (label < FAR), label, -1).to(tl.int32)
            key = _disagreement(
                (student, student_stride, real, classes), (teacher, teacher_stride, real, classes), label,
                ACC, WHOLE, N, WIDTH,
            )  # fmt: skip
            tl.store(keys + row, key, mask=row < rows)
    if STAGE == ALL:
        tl.debug_barrier()
    if STAGE == RANKS or STAGE == ALL:  # noqa: SIM109
        for tile in range(tl.program_id(0), tl.cdiv(rows, M), tl.num_programs(0)):
            row = tile * M + tl.arange(0, M)  # [M]
            key = tl.load(keys + row, mask=row < rows, other=-1.0)
            rank = _ranks(keys, key, row, rows, M)
            tl.store(index + rank, row.to(tl.int64), mask=(key >= 0.0) & (rank < limit))
    if STAGE == ALL:
        tl.debug_barrier()
    if STAGE == CHOICE or STAGE == ALL:  # noqa: SIM109
        eligible = tl.zeros([M], tl.int32)
        for first in range(0, rows, M):
            other = first + tl.arange(0, M)
            eligible += (tl.load(keys + other, mask=other < rows, other=-1.0) >= 0.0).to(tl.int32)
        count = tl.minimum(tl.sum(eligible, 0), limit)
        for tile in range(tl.program_id(0), tl.cdiv(limit, R), tl.num_programs(0)):
            slot = tile * R + tl.arange(0, R)
            is_valid = slot < count
            row = tl.load(index + slot, mask=is_valid, other=0)
            label = tl.load(labels + row, mask=is_valid, other=0)
            drawn = _drawn(
                (teacher, teacher_stride, row, classes), label.to(tl.int32), _uniform(seeds, seed, row),
                WHOLE, N, WIDTH,
            )  # fmt: skip
            tl.store(index + slot, row, mask=slot < limit)
            tl.store(base + slot, label, mask=slot < limit)
            tl.store(target + slot, tl.where(is_valid, drawn, 0), mask=slot < limit)
            tl.store(valid + slot, is_valid, mask=slot < limit)


LONGEST = {torch.float64: 2048}  # columns that a program holds, 4096 elsewhere
ELEMENTS = 1 << 16 if backends.INTERPRETING else 1024  # of a tile of short rows; the interpreter pays for operations
RANKED = 64  # rows whose ranks a program counts at a time


def _plan(rows: int, classes: int, dtype: torch.dtype, elements: int = ELEMENTS) -> dict:
    """Tiles [R, N] and what a kernel on them is launched with."""
    n = min(triton.next_power_of_2(classes), LONGEST.get(dtype, 4096))
    r = min(max(elements // n, 1), triton.next_power_of_2(rows))
    # Without a bound of its own ptxas spills a register or two to make room for one more block.
    return {"R": r, "N": n, "WHOLE": classes <= n, "num_warps": min(max(r * n // 256, 1), 8), "maxnreg": 255}


def _columns_together(logits: Tensor) -> Tensor:
    return logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()


def _row_stride(logits: Tensor) -> int:
    return logits.stride(0) if logits.shape[0] > 1 else 0


def _width(*sets: Tensor) -> int:
    """The largest vector, up to 16 bytes, that divides rows and row strides evenly."""
    return math.gcd(16 // sets[0].element_size(), sets[0].shape[1], *(_row_stride(logits) for logits in sets))


def _contiguous(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def launch_objective(
    logits: Tensor, labels: Tensor, target: Tensor | None, loss: int, softmax: bool, targeted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(value, grad_logits, prediction, active), as amkd_fast/ops/schemas.py describes them."""
    rows, classes = logits.shape
    logits = _columns_together(logits)
    labels, target = _contiguous(labels, target)
    value = logits.new_empty(rows, dtype=work_dtype(logits.dtype))
    prediction, active = labels.new_empty(rows), labels.new_empty(rows, dtype=torch.bool)
    # The interpreter truncates where a GPU rounds to bf16, so there the kernel stores fp32 and torch rounds.
    truncates = backends.INTERPRETING and logits.dtype == torch.bfloat16
    grad = logits.new_empty(rows, classes, dtype=torch.float32 if truncates else logits.dtype)
    if rows > 0:
        plan, w = _plan(rows, classes, logits.dtype), _width(logits)
        with on(logits):
            attack_objective_kernel[(triton.cdiv(rows, plan["R"]),)](
                logits, labels, target, value, grad, prediction, active, rows, classes // w, _row_stride(logits) // w,
                LOSS=loss, SOFTMAX=softmax, TARGETED=targeted, WIDTH=w, **plan,
            )  # fmt: skip
    return value, grad.to(logits.dtype), prediction, active


def launch_draw(logits: Tensor, base: Tensor, rows: Tensor | None, seeds: Tensor | None, seed: int) -> Tensor:
    """A class for each row, as amkd_fast/ops/schemas.py describes it."""
    count, classes = logits.shape
    logits = _columns_together(logits)
    base, rows = _contiguous(base, rows)
    drawn = base.new_empty(count)
    if count > 0:
        plan, w = _plan(count, classes, torch.float64), _width(logits)
        with on(logits):
            attack_draw_kernel[(triton.cdiv(count, plan["R"]),)](
                logits, base, rows, seeds, drawn, count, classes // w, _row_stride(logits) // w, seed, WIDTH=w, **plan
            )
    return drawn


def launch_bases(
    student: Tensor, teacher: Tensor, labels: Tensor, limit: int, seeds: Tensor | None, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(index, base, target, valid), as amkd_fast/ops/schemas.py describes them."""
    rows, classes = teacher.shape
    student, teacher, labels = _columns_together(student), _columns_together(teacher), labels.contiguous()
    new = labels.new_zeros if rows == 0 else labels.new_empty
    index, base, target, valid = new(limit), new(limit), new(limit), new(limit, dtype=torch.bool)
    if rows == 0 or limit == 0:
        return index, base, target, valid
    keys = teacher.new_empty(rows, dtype=work_dtype(teacher.dtype))
    plan, w = _plan(rows, classes, torch.float64, 2 * ELEMENTS), _width(student, teacher)
    launches = ((ALL, 1),)
    if max(rows, limit) > 16 * min(plan["R"], RANKED):  # more tiles than one program should read
        plan = _plan(rows, classes, torch.float64)
        tiles = (plan["R"], RANKED, plan["R"])
        counts = (triton.cdiv(size, tile) for size, tile in zip((rows, rows, limit), tiles, strict=True))
        launches = zip((KEYS, RANKS, CHOICE), counts, strict=True)
    plan["num_warps"] = max(plan["num_warps"], 4)  # for the tiles of ranks
    with on(teacher):
        for stage, programs in launches:
            attack_bases_kernel[(programs,)](
                student, teacher, labels, seeds, keys, index, base, target, valid,
                rows, classes // w, _row_stride(student) // w, _row_stride(teacher) // w, limit, seed,
                STAGE=stage.value, M=RANKED, WIDTH=w, **plan,
            )  # fmt: skip
    return index, base, target, valid
