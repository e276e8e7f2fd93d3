"""Every plan of the CUDA kernels of cosine-confidence distillation and of the standardised KL divergence once, small.

The results are held against the reference in fp64; the rows lie inside larger tensors filled with NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast.ops.kl.consistency import function as consistency
from amkd_fast.ops.kl.standardised import function as standardised
from tests.gpu.device import DEVICE

# One block; edges alone; several blocks; a block a row, aligned and not; large blocks, whose gradient several share.
SHAPES = {
    "one block": (128, 100),
    "short rows": (33, 10),
    "many rows": (700, 65),
    "block a row": (300, 1000),
    "unaligned": (40, 1037),
    "large blocks": (3, 9000),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-11}


class Case(NamedTuple):
    """One call, forward and backward."""

    loss: str
    plan: str
    dtype: torch.dtype
    per_row: bool = False


def cases(short: bool) -> Iterator[Case]:
    """All of them; `short` keeps fp32 and bf16, which have every kernel's barriers."""
    for plan, dtype in itertools.product(SHAPES, DTYPES[:2] if short else DTYPES):
        yield Case("consistency", plan, dtype)
        for per_row in (False, True):
            yield Case("standardised", plan, dtype, per_row)


def check(case: Case) -> str:
    """What is wrong with one case, empty if nothing is."""
    rows, classes = SHAPES[case.plan]
    generator = torch.Generator().manual_seed(rows + classes)
    drawn = [torch.randn(rows, classes, generator=generator).mul_(3).to(case.dtype) for _ in range(4)]
    drawn[0][1] = 0.5  # where nothing varies
    tensors = [_inside_nan(x.to(DEVICE), 3 * case.per_row) for x in drawn]
    exact = [x.double().requires_grad_() for x in drawn]
    if case.loss == "consistency":
        found, expected = _consistency(tensors, exact)
    else:
        stat = torch.float64 if case.dtype == torch.float64 else torch.float32
        weight = torch.rand(rows, generator=generator).to(stat) if case.per_row else None
        found, expected = _standardised(tensors, exact, weight, case.per_row)
    errors = [
        ((got.double().cpu() - want).norm() / want.norm()).item() for got, want in zip(found, expected, strict=True)
    ]
    wrong = [error for error in errors if not error <= TOLERANCE[case.dtype]]
    return f"relative errors {errors}" if wrong else ""


def _consistency(tensors: list[Tensor], exact: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    from amkd_fast.ops.kl.consistency import native

    total, stats = native.forward_op(*tensors, 2.0, 4.0)
    found = [total, *consistency.parts(stats, len(tensors[0]))]
    found += native.backward_op(torch.ones_like(total), *tensors, stats, 2.0, 4.0)
    expected = consistency.compute(*exact, 2.0, 4.0)
    grads = torch.autograd.grad(expected[0], exact[::2])
    return found, [x.detach() for x in (*expected, *grads)]


def _standardised(
    tensors: list[Tensor], exact: list[Tensor], weight: Tensor | None, per_row: bool
) -> tuple[list[Tensor], list[Tensor]]:
    from amkd_fast.ops.kl.standardised import native

    given = None if weight is None else weight.to(DEVICE)
    loss, stats = native.forward_op(*tensors[:2], given, 2.0, 50.0, per_row)
    grad = native.backward_op(torch.ones_like(loss), *tensors[:2], given, stats, 2.0, 50.0, per_row)
    expected = standardised.compute(*exact[:2], None if weight is None else weight.double(), 2.0, 50.0, per_row)
    (expected_grad,) = torch.autograd.grad(expected.sum(), exact[0])
    return [loss, grad], [expected.detach(), expected_grad]


def _inside_nan(values: Tensor, pad: int) -> Tensor:
    """The same values as a view with row stride K + pad of a tensor that is NaN elsewhere."""
    rows, classes = values.shape
    home = values.new_full((rows + 2, classes + pad), float("nan"))
    home[1:-1, :classes] = values
    return home[1:-1, :classes]
