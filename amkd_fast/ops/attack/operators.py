"""The operators of the attack family by backend, which of them serves a call, and how images must lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.ops import schemas
from amkd_fast.typing import AttackLoss, Score

LOSSES: tuple[AttackLoss, ...] = get_args(AttackLoss)  # the position is the operators' `loss` number
SCORES: tuple[Score, ...] = get_args(Score)
INF = float("inf")
RULES = {("linf", 1): 0, ("l2", 1): 1, ("l1", 1): 2, ("boundary", 1): 3, ("boundary", 2): 4}


class Operators(NamedTuple):
    """The operators of one backend."""

    step: Callable
    objective: Callable
    bases: Callable
    draw: Callable
    svgd: Callable


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """What images and logits of ``dtype`` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_step(*_) -> None:
    """Returns nothing: the result is in ``out``."""


def _fake_objective(logits, *_):
    """(value, grad_logits, prediction, active)."""
    rows = logits.shape[:1]
    return (
        logits.new_empty(rows, dtype=work_dtype(logits.dtype)),
        logits.new_empty(logits.shape),
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=torch.bool),
    )


def _fake_bases(student, teacher, labels, limit, *_):
    """(index, base, target, valid)."""
    columns = (student.new_empty((limit,), dtype=torch.int64) for _ in range(3))
    return (*columns, student.new_empty((limit,), dtype=torch.bool))


def _fake_draw(logits, *_):
    """One class a row."""
    return logits.new_empty(logits.shape[:1], dtype=torch.int64)


def _fake_judge(logits, *_):
    """(grad_logits, active, left)."""
    active = logits.new_empty(logits.shape[:1], dtype=torch.bool)
    return logits.new_empty(logits.shape), active, torch.library.get_ctx().new_dynamic_size()


def _fake_advance(x, grad, rows, active, left, *_):
    """(x, rows)."""
    sizes = (left, *x.shape[1:])
    return x.new_empty_strided(sizes, x.stride()), rows.new_empty((left,))


def _fake_outcome(logits, base, *_):
    """(target, status, gap, accepted)."""
    target, status = torch.empty_like(base), torch.empty_like(base)
    return (
        target,
        status,
        base.new_empty(base.shape, dtype=work_dtype(logits.dtype)),
        base.new_empty(base.shape, dtype=torch.bool),
    )


def _fake_fold(weights, means, variances, gains, shifts, biases, eps, channels_last):
    """Weight, bias, weight, bias …."""
    made = []
    for weight, bias in zip(weights, biases, strict=True):
        last = channels_last and weight.dim() == 4
        form = torch.channels_last if last else torch.contiguous_format
        made += [torch.empty_like(weight, memory_format=form), torch.empty_like(bias)]
    return made


_TRITON = "amkd_fast.ops.attack."
schemas.register("attack_step", _fake_step, _TRITON + "triton_step:launch_step")
schemas.register("attack_objective", _fake_objective, _TRITON + "triton_rows:launch_objective")
schemas.register("attack_bases", _fake_bases, _TRITON + "triton_rows:launch_bases")
schemas.register("attack_draw", _fake_draw, _TRITON + "triton_rows:launch_draw")
schemas.register("attack_svgd", _fake_step, _TRITON + "particles_triton:launch_svgd")
for _name, _fake in (
    ("judge", _fake_judge), ("advance", _fake_advance), ("halve", _fake_step), ("outcome", _fake_outcome),
    ("fold", _fake_fold),
):  # fmt: skip
    schemas.register(f"attack_{_name}", _fake)
_OPERATORS: dict[str, Operators | None] = {
    backend: Operators(*(schemas.operator(f"attack_{name}", backend) for name in Operators._fields))
    for backend in ("cpu", "cuda", "triton")
} | {"reference": None}


def serving(tensor: Tensor, only_reference: str = "") -> tuple[str, Operators | None]:
    """The backend that serves a call on ``tensor``'s device, and its operators: None for the reference."""
    device = "cpu" if tensor.is_cpu else tensor.device.type  # the flag is read in a tenth of the time
    name = backends.select("attack", device, only_reference)
    return name, _OPERATORS[name]


def dense(x: Tensor) -> Tensor:
    """``x``, or a contiguous copy where it is neither contiguous nor channels_last."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def lying_like(x: Tensor, image: Tensor) -> Tensor:
    """``image``, or a copy whose flat positions are those of ``x``."""
    return image if alike(x, image) else torch.empty_like(x, dtype=image.dtype).copy_(image)


def alike(x: Tensor, image: Tensor) -> bool:
    """Whether flat positions agree; strides of dimensions of size 1 may differ and mean nothing."""
    return (x.is_contiguous() and image.is_contiguous()) or image.stride() == x.stride()


def split(value: float | Tensor | None, nothing: float, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """A tensor that replaces the number beside it, or None and the number."""
    if type(value) is float:
        return None, value
    if isinstance(value, Tensor):
        return (value if value.dtype == dtype else value.to(dtype)).contiguous(), nothing
    return None, nothing if value is None else float(value)
