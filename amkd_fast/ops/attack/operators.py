"""The operators that every fast backend of the attack family has, and how the public functions' arguments reach them.

`amkd_fast/ops/schemas.py` states the schemas; the Triton operators have the same with the suffix `_triton`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast import checks, philox
from amkd_fast.ops.attack import steps
from amkd_fast.ops.attack.steps import has_channels, top_count

NAMES = ("attack_step", "attack_objective", "attack_bases", "attack_draw")
LOSSES = ("ce", "boundary", "dlr")  # the position is the operators' `loss` number
INF = float("inf")
RULES = {("linf", 1): 0, ("l2", 1): 1, ("l1", 1): 2, ("boundary", 1): 3, ("boundary", 2): 4}


class Operators(NamedTuple):
    """The operators of one backend."""

    step: Callable
    objective: Callable
    bases: Callable
    draw: Callable


class Step(NamedTuple):
    """A call of `attack_step` besides ``out``, ``x`` and ``grad``: the arguments of the specification."""

    x0: Tensor | None
    step_size: float | Tensor
    eps: float | Tensor | None
    norm: str
    norm_power: int
    gap: Tensor | None
    velocity: Tensor | None
    decay: float
    lower: float | Tensor | None
    upper: float | Tensor | None
    active: Tensor | None
    project: bool
    top: float


def registered(suffix: str = "") -> Operators:
    """The operators `amkd_fast::attack_*` with ``suffix``, made known to torch.compile."""
    for name, fake in zip(NAMES, (fake_step, fake_objective, fake_bases, fake_draw), strict=True):
        torch.library.register_fake(f"amkd_fast::{name}{suffix}", fake)
    return Operators(*(getattr(torch.ops.amkd_fast, f"{name}{suffix}").default for name in NAMES))


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """What images and logits of ``dtype`` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def step(operators: Operators, x: Tensor, grad: Tensor, out: Tensor | None, call: Step) -> Tensor:
    """Run the step operator; the velocity of ``call`` changes in place."""
    if has_channels(call.step_size) or has_channels(call.eps):
        moved = _step_by_channel(operators, x, grad, call)
        return moved if out is None else out.copy_(moved)
    work = work_dtype(x.dtype)
    x = dense(x)
    grad = lying_like(x, grad)
    x0 = None if call.eps is None else lying_like(x, call.x0)
    velocity = None if call.velocity is None else lying_like(x, call.velocity)
    into = out if out is not None and _alike(x, out) else torch.empty_like(x)
    step_sizes, step_size = split(call.step_size, 0.0, work)
    radii, radius = split(call.eps, 0.0, work)
    lowers, lower = split(call.lower, -INF, work)
    uppers, upper = split(call.upper, INF, work)
    gap, _ = split(call.gap, 0.0, work)
    rule = RULES[call.norm, call.norm_power]
    top = top_count(call.top, x[0].numel()) if rule == 2 else 1
    operators.step(
        into, x, grad, x0, step_sizes, radii, gap, velocity, lowers, uppers, call.active, rule, step_size, radius,
        lower, upper, call.decay, call.project, top,
    )  # fmt: skip
    if velocity is not call.velocity:
        call.velocity.copy_(velocity)
    return into if out is None or into is out else out.copy_(into)


def _step_by_channel(operators: Operators, x: Tensor, grad: Tensor, call: Step) -> Tensor:
    """The operator finds where each sample heads; how far, and the ball, differ from channel to channel."""
    work = work_dtype(x.dtype)
    wide, g = x.to(work), grad.to(work)
    eta, radius = steps.per_sample(call.step_size, wide), steps.per_sample(call.eps, wide)
    reach = eta if call.gap is None else eta * (steps.per_sample(call.gap, wide) + steps.GAP_MARGIN)
    usable = torch.isfinite(reach).flatten(1).all(1)
    for flags in (None if radius is None else (radius >= 0).flatten(1).all(1), call.active):
        usable = usable if flags is None else usable & flags
    usable = usable.expand(x.shape[0]).contiguous()

    def heading(g: Tensor, norm: str, velocity: Tensor | None) -> tuple[Tensor, Tensor]:
        only = Step(None, 1.0, None, norm, 1, None, velocity, call.decay, None, None, usable, False, call.top)
        heading = step(operators, torch.zeros_like(g), g, None, only)
        return heading, (heading != 0).flatten(1).any(1).view(-1, *[1] * (x.dim() - 1))

    if has_channels(call.step_size) and (call.norm != "linf" or call.velocity is not None):
        g = g * steps.shares(eta)
    if call.velocity is not None:
        _, moves = heading(g, "linf", call.velocity)
        g = torch.where(moves, call.velocity, 0.0)
    if call.project:
        low, high = steps.per_channel(call.lower, wide), steps.per_channel(call.upper, wide)
        g = steps.without_blocked(wide, g, g * reach.sign(), low, high)
    way, moves = heading(g, "l2" if call.norm == "boundary" else call.norm, None)
    change = torch.where(moves, reach, 0.0) * way
    return steps.landed(x, change, moves, call.x0, call.eps, call.norm, call.lower, call.upper)


def objective(
    operators: Operators, logits: Tensor, labels: Tensor, loss: str, target: Tensor | None, score: str, targeted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the objective operator."""
    target = None if target is None else target.long()
    softmax = score == "softmax"
    try:
        return operators.objective(logits.detach(), labels.long(), target, LOSSES.index(loss), softmax, targeted)
    except RuntimeError as error:
        raise checks.refused(error, "classes: ") from None


def bases(operators: Operators, student: Tensor, teacher: Tensor, labels: Tensor, limit: int, seed: int | Tensor):
    """Run the selection operator."""
    if student.dtype != teacher.dtype:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        student, teacher = student.to(dtype), teacher.to(dtype)
    return operators.bases(student.detach(), teacher.detach(), labels.long(), limit, *philox.operator_seed(seed))


def draw(operators: Operators, logits: Tensor, base: Tensor, seed: int | Tensor, rows: Tensor | None) -> Tensor:
    """Run the operator that draws targets."""
    try:
        return operators.draw(logits.detach(), base.long(), rows, *philox.operator_seed(seed))
    except RuntimeError as error:
        raise checks.refused(error, "classes: ") from None


def fake_step(*_) -> None:
    """Returns nothing: the result is in ``out``."""


def fake_objective(logits, *_):
    """(value, grad_logits, prediction, active)."""
    rows = logits.shape[:1]
    return (
        logits.new_empty(rows, dtype=work_dtype(logits.dtype)),
        logits.new_empty(logits.shape),
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=torch.bool),
    )


def fake_bases(student, teacher, labels, limit, *_):
    """(index, base, target, valid)."""
    columns = (student.new_empty((limit,), dtype=torch.int64) for _ in range(3))
    return (*columns, student.new_empty((limit,), dtype=torch.bool))


def fake_draw(logits, *_):
    """One class a row."""
    return logits.new_empty(logits.shape[:1], dtype=torch.int64)


def dense(x: Tensor) -> Tensor:
    """``x``, or a contiguous copy where it is neither contiguous nor channels_last."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def lying_like(x: Tensor, image: Tensor) -> Tensor:
    """``image``, or a copy whose flat positions are those of ``x``."""
    return image if _alike(x, image) else torch.empty_like(x, dtype=image.dtype).copy_(image)


def _alike(x: Tensor, image: Tensor) -> bool:
    """Whether flat positions agree; strides of dimensions of size 1 may differ and mean nothing."""
    return (x.is_contiguous() and image.is_contiguous()) or image.stride() == x.stride()


def split(value: float | Tensor | None, nothing: float, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """A tensor that replaces the number beside it, or None and the number."""
    if value is None:
        return None, nothing
    if isinstance(value, Tensor):
        return value.to(dtype).contiguous(), nothing
    return None, float(value)
