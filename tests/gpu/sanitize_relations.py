"""Every plan of the relations kernels once, small, held against the reference in fp64 on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast.ops.relations import reference
from tests.gpu.device import DEVICE

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WEIGHTS = ((25.0, 50.0), (0.0, 1e3), (1e3, 0.0))  # large, so that no gradient is subnormal


class Case(NamedTuple):
    """One call of the operator."""

    rows: int
    widths: tuple[int, int]
    weights: tuple[float, float]
    dtype: torch.dtype = torch.float32
    with_gradient: bool = True
    pad: int = 0  # numbers between the rows


def cases(short: bool) -> Iterator[Case]:
    """All of them; `short` leaves out other dtypes, whose barriers are the same."""
    for weights in WEIGHTS:
        for rows, widths in ((1, (3, 2)), (16, (16, 32)), (53, (19, 70))):
            yield Case(rows, widths, weights)
        yield Case(40, (8, 9), weights, with_gradient=False)
    if short:
        return
    for dtype in DTYPES:
        for weights in WEIGHTS:
            yield Case(35, (21, 5), weights, dtype, pad=3)


def check(case: Case) -> str:
    """What is wrong with one case, empty if nothing is."""
    from amkd_fast.ops.relations import native

    generator = torch.Generator().manual_seed(0)

    def rows(width: int) -> Tensor:
        """Inside of a tensor that is NaN elsewhere."""
        home = torch.full((case.rows + 2, width + case.pad), torch.nan, dtype=case.dtype, device=DEVICE)
        home[1:-1, :width] = torch.randn(case.rows, width, generator=generator).to(DEVICE, case.dtype)
        return home[1:-1, :width]

    student, teacher = map(rows, case.widths)
    loss, grad = native.operator(student, teacher, *case.weights, case.with_gradient)
    leaf = student.cpu().double().requires_grad_()
    want = reference.loss(leaf, teacher.cpu().double(), *case.weights)
    pairs = [("loss", loss, want.detach())]
    if case.with_gradient:
        pairs.append(("gradient", grad, torch.autograd.grad(want, leaf)[0]))
    for name, got, exact in pairs:
        error = ((got.double().cpu() - exact).norm() / exact.norm().clamp_min(1e-30)).item()
        if not error <= (1e-11 if case.dtype == torch.float64 else 1e-6):  # loss and gradient are fp32 at least
            return f"{name}: relative error {error:.2e}"
    return ""
