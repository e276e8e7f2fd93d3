"""Every plan of the CUDA kernels of decoupled distillation once, small, held against the reference in fp64."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from amkd_fast.ops.kl.decoupled import function
from tests.gpu.device import DEVICE

# One block; edges alone; several blocks; a block a row, aligned and not; large blocks; a gradient split over blocks.
SHAPES = {
    "one block": (128, 100),
    "short rows": (33, 10),
    "one class": (5, 1),
    "many rows": (700, 65),
    "block a row": (300, 1000),
    "unaligned": (40, 1037),
    "large blocks": (3, 20001),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-11}


class Case(NamedTuple):
    """One call of both operators; `pad` columns of NaN lie between two rows."""

    plan: str
    dtype: torch.dtype
    per_row: bool
    pad: int


def cases(short: bool) -> Iterator[Case]:
    """All of them; `short` leaves out the dtypes that change no barrier."""
    for plan in SHAPES:
        for dtype in list(TOLERANCE)[: 2 if short else 4]:
            yield Case(plan, dtype, False, 0)
            yield Case(plan, dtype, True, 3)


def check(case: Case) -> str:
    """What is wrong with one case, empty if nothing is."""
    from amkd_fast.ops.kl.decoupled import native
    from tests.gpu.sanitize import inside_nan

    rows, classes = SHAPES[case.plan]
    draws = torch.Generator().manual_seed(rows + classes)
    pair = (3 * torch.randn(2, rows, classes, generator=draws)).to(DEVICE, case.dtype)
    labels = torch.randint(classes, (rows,), generator=draws, dtype=torch.int32 if case.per_row else torch.int64)
    stat = torch.float64 if case.dtype == torch.float64 else torch.float32
    weight = (torch.rand(rows, generator=draws) + 0.5).to(DEVICE, stat)
    inputs = (*(inside_nan(x, case.pad) for x in pair), labels.to(DEVICE), None if case.per_row else weight)
    scalars = function.Scalars(2.0, 4.0, 32.0, 1.0 / rows, case.per_row)
    loss, stats = native.forward_op(*inputs, *scalars)
    grad = native.backward_op(torch.ones_like(loss), *inputs, stats, *scalars)

    student, teacher = (x.double().cpu() for x in pair)
    student.requires_grad_()
    exact = function.compute(student, teacher, labels, None if case.per_row else weight.double().cpu(), scalars)
    (exact_grad,) = torch.autograd.grad(exact.sum(), student)
    pairs = ((loss, exact.detach()), (grad, exact_grad))
    errors = [((got.double().cpu() - want).norm() / want.norm().clamp(min=1e-30)).item() for got, want in pairs]
    return "" if max(errors) <= TOLERANCE[case.dtype] else f"relative errors {errors}"
