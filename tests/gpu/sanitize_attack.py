"""Every plan of the attack kernels once, small, held against the reference in fp64 on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast.ops.attack import bases, objective, particles_reference, steps
from amkd_fast.ops.attack import operators as attack_operators
from amkd_fast.ops.attack.operators import LOSSES, Step
from tests.gpu.device import DEVICE

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-11}
RULES = ("linf", "l2", "l1", "unit", "newton")
SEED = 7


class Case(NamedTuple):
    """One call of an operator; `shape` is a sample's for a step, else (classes,)."""

    operator: str
    plan: str
    rows: int
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    rule: str = "linf"
    scale: float = 1.0  # of the gradient
    ball: bool = True
    momentum: bool = False
    project: bool = False
    channels: bool = False  # bounds per channel
    channels_last: bool = False
    in_place: bool = False
    wide_grad: bool = False
    offset: int = 0  # elements by which memory is not aligned, or padding of the rows
    loss: str = "ce"
    softmax: bool = False
    targeted: bool = False
    limit: int = 0
    count: int = 0  # particles of an image


# A warp a sample; a block, held in registers; clusters of 2 and 8 blocks, or one block that reads again and again.
STEPS = {
    "warp a sample": (9, (1, 8, 8)),
    "warp, element by element": (6, (3, 5, 5)),
    "block": (4, (3, 32, 32)),
    "block, element by element": (3, (3, 31, 31)),
    "two blocks": (2, (3, 64, 64)),
    "two blocks, element by element": (2, (3, 61, 61)),
    "eight blocks, streamed": (2, (3, 144, 144)),
}


def cases(short: bool) -> Iterator[Case]:
    """All of them; `short` leaves out what has no barrier of its own."""
    single, half, brain, double = torch.float32, torch.float16, torch.bfloat16, torch.float64
    for plan, (rows, shape) in STEPS.items():
        for rule in RULES:
            yield Case("step", plan, rows, shape, rule=rule, project=True, channels=True)
        for rule in ("l2", "l1"):
            yield Case("step", plan, rows, shape, rule=rule, momentum=True, scale=1e-38)
        yield Case("step", plan, rows, shape, rule="unit", scale=1e37, in_place=True)
    for classes in (10, 1000, 1001, 3000):
        for loss in LOSSES:
            yield Case("objective", "row", 37, (classes,), loss=loss, softmax=True, targeted=loss == "dlr")
        yield Case("draw", "warp a row", 37, (classes,))
    yield Case("bases", "one block", 256, (10,), limit=64)
    yield Case("bases", "two launches", 700, (100,), limit=64)
    yield Case("bases", "two launches, padded", 600, (7,), limit=650)
    for count, shape in ((1, (3, 8, 8)), (2, (1, 5, 5)), (4, (3, 32, 32)), (13, (3, 9, 11)), (64, (1, 7, 5))):
        yield Case("svgd", "particles", 3, shape, count=count, channels=True)
    if short:
        return
    for dtype in (single, half, brain, double):
        for plan, (rows, shape) in STEPS.items():
            yield Case("step", plan, rows, shape, dtype, channels_last=True, channels=True, project=True)
            yield Case("step", plan, rows, shape, dtype, "l2", offset=1, ball=False, momentum=True, in_place=True)
            yield Case("step", plan, rows, shape, dtype, "l1", wide_grad=True, in_place=True)
            yield Case("step", plan, rows, shape, dtype, "newton", wide_grad=True, offset=1)
        for classes in (10, 96, 2048):
            for loss in LOSSES:
                for targeted in (False, True):
                    yield Case("objective", "row", 21, (classes,), dtype, loss=loss, targeted=targeted, offset=3)
            yield Case("objective", "row", 21, (classes,), dtype, loss="boundary", softmax=True)
            yield Case("draw", "warp a row", 21, (classes,), dtype, offset=3)
        for count in (3, 8):
            yield Case("svgd", "particles", 5, (4, 8, 8), dtype, count=count, channels_last=True, channels=True)
            yield Case("svgd", "particles", 5, (3, 6, 7), dtype, count=count, wide_grad=True, offset=1)
        yield Case("bases", "one block", 200, (16,), dtype, limit=300)
        yield Case("bases", "two launches", 520, (33,), dtype, limit=64, offset=1)


def check(case: Case) -> str:
    """What is wrong with one case, empty if nothing is."""
    checks = {"step": _check_step, "objective": _check_objective, "draw": _check_draw, "bases": _check_bases}
    return {**checks, "svgd": _check_svgd}[case.operator](case)


def operators():
    """Those of the compiled extension."""
    from amkd_fast.ops.attack import native

    return native.operators


def _work(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _relative(got: Tensor, want: Tensor) -> float:
    error = ((got.double().cpu() - want).norm() / want.norm().clamp_min(1e-300)).item()
    return error if torch.isfinite(got).all() else math.inf


def _exact(value):
    if not isinstance(value, Tensor):
        return value
    return value.cpu().double() if value.is_floating_point() else value.cpu()


def _image_inside_nan(values: Tensor, offset: int, channels_last: bool) -> Tensor:
    """The same values, dense, in memory that is NaN around them; `offset` elements from an aligned address."""
    if channels_last and values.dim() == 4:
        values = values.contiguous(memory_format=torch.channels_last)
    home = torch.full((values.numel() + 32,), math.nan, dtype=values.dtype, device=DEVICE)
    return home.as_strided(values.shape, values.stride(), 16 + offset).copy_(values)


def _rows_inside_nan(values: Tensor, pad: int) -> Tensor:
    """The same values with row stride K + pad in a tensor that is NaN elsewhere."""
    rows, classes = values.shape
    home = torch.full((rows + 2, classes + pad), math.nan, dtype=values.dtype, device=DEVICE)
    home[1:-1, :classes] = values.to(DEVICE)
    return home[1:-1, :classes]


def _check_step(case: Case) -> str:
    generator = torch.Generator().manual_seed(case.rows)
    work, boundary = _work(case.dtype), case.rule in ("unit", "newton")

    def image(spread: float, dtype: torch.dtype, around: Tensor | None = None) -> Tensor:
        values = torch.randn(case.rows, *case.shape, generator=generator, dtype=torch.float64) * spread
        values = values if around is None else values + around.double().cpu()
        return _image_inside_nan(values.to(dtype), case.offset, case.channels_last)

    def row(*values: float) -> Tensor:
        return torch.tensor(values, dtype=work).repeat(case.rows)[: case.rows].to(DEVICE)

    x = image(0.5, case.dtype)
    if case.channels or case.project:
        x.clamp_(-0.6, 0.6)  # many stand at a bound
    grad = image(case.scale, work if case.wide_grad else case.dtype)
    grad[-1, 0, 1, 2] = math.nan  # this one stays
    bound = torch.tensor([0.6, 0.5, 0.8], dtype=work).repeat(case.shape[0])[: case.shape[0]].to(DEVICE)
    bound = bound if case.channels else 0.6 if case.project else None
    has_ball = case.ball and not boundary
    root = math.sqrt(math.prod(case.shape))
    call = Step(
        x0=image(0.05, case.dtype, x) if has_ball else None,
        step_size=row(0.3, -0.2),
        eps={"linf": row(0.1, 0.4), "l2": row(0.02 * root), "l1": row(0.02 * root**2)}[case.rule] if has_ball else None,
        norm="boundary" if boundary else case.rule,
        norm_power=2 if case.rule == "newton" else 1,
        gap=row(1.0, 2.0) if boundary else None,
        velocity=image(1.0, work) if case.momentum else None,
        decay=0.9,
        lower=None if bound is None else -bound,
        upper=bound,
        active=torch.arange(case.rows, device=DEVICE) != 1,
        project=case.project,
        top=0.05,
    )
    want, want_velocity = steps.attack_step(
        _exact(x), _exact(grad), **{n: _exact(v) for n, v in call._asdict().items()}
    )
    before = x.clone()
    out = x if case.in_place else _image_inside_nan(torch.full_like(x, math.nan).cpu(), case.offset, case.channels_last)
    got = attack_operators.step(operators(), x, grad, out, call)
    for i in (1, case.rows - 1):
        if not torch.equal(got[i], before[i]):
            return f"sample {i} has to stay"
    error = _relative(got, want)
    if not error <= TOLERANCE[case.dtype]:
        return f"samples: relative error {error:.2e}"
    error = _relative(call.velocity, want_velocity) if case.momentum else 0.0
    return "" if error <= TOLERANCE[work] else f"velocity: relative error {error:.2e}"


def _check_svgd(case: Case) -> str:
    generator, work = torch.Generator().manual_seed(case.rows), _work(case.dtype)

    def crowd(spread: float, dtype: torch.dtype, around: Tensor) -> Tensor:
        shape = (case.rows * case.count, *case.shape)
        values = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
        values = values + around.double().cpu().repeat_interleave(case.count, 0)
        return _image_inside_nan(values.to(dtype), case.offset, case.channels_last).unflatten(0, (-1, case.count))

    clean = torch.rand(case.rows, *case.shape, generator=generator, dtype=torch.float64)
    x0 = _image_inside_nan(clean.to(case.dtype), case.offset, case.channels_last)
    x = crowd(0.03, case.dtype, x0)
    grad = crowd(math.prod(case.shape) ** -0.5, work if case.wide_grad else case.dtype, torch.zeros_like(x0))
    grad[-1, -1, 0, 1, 2] = math.nan  # this one stays and is not there for the others
    each = torch.linspace(0.1, 0.3, case.shape[0], dtype=work, device=DEVICE) if case.channels else None
    out = _image_inside_nan(torch.full_like(x.flatten(0, 1), math.nan).cpu(), case.offset, case.channels_last)
    out = out.unflatten(0, (-1, case.count))
    step_size = torch.full((case.rows,), 0.02, dtype=work, device=DEVICE)
    tensors = (out, x, grad, x0, step_size, None, each, None)
    torch.ops.amkd_fast.attack_svgd.default(*tensors, 0.0, 0.05, -math.inf, 0.9, 0.0)
    given = [_exact(value) for value in (x, grad, x0)]
    sizes = {"step_size": 0.02, "eps": 0.05, "lower": _exact(each), "upper": 0.9, "bandwidth": None}
    want = particles_reference.svgd_step(*given, **sizes)
    if not torch.equal(out[-1, -1], x[-1, -1]):
        return "a particle has to stay"
    phi = particles_reference.stein_direction(given[0], given[1], None).abs()
    wrong = (out.double().cpu() - want).abs() > 4 * torch.finfo(case.dtype).eps
    certain = phi > 1e-4 * phi.flatten(2).amax(2).view(*phi.shape[:2], *[1] * len(case.shape))
    return f"{int((wrong & certain).sum())} numbers differ" if (wrong & certain).any() else ""


def _logits(case: Case, generator: torch.Generator) -> Tensor:
    logits = 3 * torch.randn(case.rows, *case.shape, generator=generator)
    return _rows_inside_nan(logits.to(case.dtype), case.offset)


def _check_objective(case: Case) -> str:
    generator = torch.Generator().manual_seed(case.rows)
    logits = _logits(case, generator)
    logits[3, 2] = math.nan
    labels = torch.where(torch.arange(case.rows) % 2 == 0, logits.cpu().float().nan_to_num().argmax(1), 1)
    target = (labels + 2) % case.shape[0] if case.targeted else None
    labels[5] = 0
    score = "softmax" if case.softmax else "logits"
    want, eager = (
        objective.attack_objective(z, labels, case.loss, target, score, case.targeted)
        for z in (_exact(logits), logits.cpu())
    )
    labels[5] = 1 << 40  # no class: the row is inert
    got = operators().objective(
        logits,
        labels.to(DEVICE),
        None if target is None else target.to(DEVICE),
        LOSSES.index(case.loss),
        case.softmax,
        case.targeted,
    )
    got = [column.cpu() for column in got]
    if not got[0][[3, 5]].isnan().all() or got[1][[3, 5]].any() or got[3][[3, 5]].any():
        return "rows with a NaN or without a class are not inert"
    rest = torch.arange(case.rows)
    rest = rest[(rest != 3) & (rest != 5)]
    for name, found, expected in zip(("prediction", "active"), got[2:], want[2:], strict=True):
        if not torch.equal(found[rest], expected[rest]):
            return f"{name} differs"
    for name, found, expected, plain in zip(("value", "gradient"), got, want, eager, strict=False):
        error = _relative(found[rest], expected[rest])
        tolerance = TOLERANCE[_work(case.dtype) if name == "value" else case.dtype]
        if not error <= max(tolerance, 2 * _relative(plain[rest], expected[rest])):  # small differences of logits
            return f"{name}: relative error {error:.2e}"
    return ""


def _check_draw(case: Case) -> str:
    generator = torch.Generator().manual_seed(case.rows)
    logits = _logits(case, generator)
    logits[2, 1:] = -math.inf  # nothing to draw from
    base = torch.randint(0, case.shape[0], (case.rows,), generator=generator)
    base[2] = 0
    counters = torch.randint(0, 1 << 62, (case.rows,), generator=generator)
    for rows in (None, counters):
        want = bases.draw_targets(logits.cpu(), base, SEED, rows)
        seeds = torch.tensor(SEED, device=DEVICE)
        got = operators().draw(logits, base.to(DEVICE), None if rows is None else rows.to(DEVICE), seeds, 0)
        if not torch.equal(got.cpu(), want):
            return f"{int((got.cpu() != want).sum())} targets are others"
    return ""


def _check_bases(case: Case) -> str:
    generator = torch.Generator().manual_seed(case.rows)
    teacher = _logits(case, generator)
    student = _rows_inside_nan(
        (teacher.cpu().float() + 0.3 * _logits(case, generator).cpu()).to(case.dtype), case.offset
    )
    teacher[4] = teacher[9]  # a tie
    student[4] = student[9]
    labels = teacher.cpu().float().argmax(1)
    labels[::6] = -100
    got = operators().bases(student, teacher, labels.to(DEVICE), case.limit, None, SEED)
    index, base, target, valid = (column.cpu() for column in got)
    want = bases.select_boundary_bases(_exact(student), _exact(teacher), labels, case.limit, SEED)
    if not torch.equal(valid, want.valid):
        return f"{int(valid.sum())} valid rows, not {int(want.valid.sum())}"
    # Two that differ by a rounding alone may change places.
    difference = (_exact(teacher).softmax(1) - _exact(student).softmax(1)).square()
    key = difference.sum(1) - difference.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    if (
        not torch.allclose(key[index], key[want.index], rtol=1e-4, atol=1e-9)
        or index[valid].unique().numel() != valid.sum()
    ):
        return "index: others are chosen"
    drawn = bases.draw_targets(teacher.cpu(), labels.clamp_min(0), SEED)
    if not torch.equal(base[valid], labels[index[valid]]) or not torch.equal(target[valid], drawn[index[valid]]):
        return "base or target differs"
    return "padding is not zero" if (index + base + target)[~valid].any() else ""
