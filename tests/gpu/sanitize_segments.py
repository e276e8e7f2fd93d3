"""Every plan of the segments kernels once, small, held against fp64.

The tensors sit inside larger ones filled with NaN, so that a read outside of a segment shows in the result too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from amkd_fast.ops.segments import reference
from tests.gpu.device import DEVICE

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-11}


class Case(NamedTuple):
    """One set of segments through all operators."""

    plan: str
    sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]  # of the segments, in turn
    weighted: bool = False
    offset: int = 0  # elements by which the segments are not aligned


# A block, several with a rest, none; more tiles than blocks; more segments than a launch takes.
SIZES = {
    "few": (4096, 9001, 0, 1, 640),
    "several tiles a block": (5_000_003, 7),
    "several launches": tuple(range(130)),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def cases(short: bool) -> Iterator[Case]:
    """All of them; `short` leaves out what has the same barriers."""
    for plan, sizes in SIZES.items():
        yield Case(plan, sizes, DTYPES, weighted=True)
        if short:
            continue
        for dtype in DTYPES:
            yield Case(plan, sizes, (dtype,))
            yield Case(plan, sizes, (dtype,), weighted=True, offset=1)


def check(case: Case) -> str:
    """What is wrong with one case, empty if nothing is."""
    from amkd_fast.ops.segments.native import operators

    generator = torch.Generator().manual_seed(0)
    dtypes = [case.dtypes[i % len(case.dtypes)] for i in range(len(case.sizes))]

    def drawn() -> list[torch.Tensor]:
        pairs = zip(case.sizes, dtypes, strict=True)
        return [torch.randn(size, generator=generator).to(dtype) for size, dtype in pairs]

    def placed(segment: torch.Tensor) -> torch.Tensor:
        home = torch.full((len(segment) + case.offset + 8,), torch.nan, dtype=segment.dtype, device=DEVICE)
        here = home[case.offset : case.offset + len(segment)]
        return here.copy_(segment)

    student, teacher = drawn(), drawn()
    stat = torch.float64 if torch.float64 in dtypes else torch.float32
    factors = [(1.0 + i % 3) * max(size, 1) for i, size in enumerate(case.sizes)]  # no gradient vanishes in fp16
    weights = torch.tensor(factors, dtype=stat, device=DEVICE) if case.weighted else None
    upstream = torch.tensor(0.5, dtype=stat, device=DEVICE)

    leaves = [segment.double().requires_grad_() for segment in student]
    numbers = torch.tensor(factors, dtype=torch.float64)
    exact = reference.segment_mse(leaves, [segment.double() for segment in teacher], numbers)
    slopes = torch.autograd.grad(exact, leaves)

    pair = [placed(segment) for segment in student], [placed(segment) for segment in teacher]
    loss, _, grads = operators.forward(*pair, weights, factors, True)
    again, _, _ = operators.forward(*pair, weights, factors, False)
    half = operators.backward(upstream, *pair, weights, factors)
    operators.scale(grads, upstream)
    wrong = [] if torch.equal(loss, again) else ["the loss differs with and without gradients"]
    if not abs(loss.item() - exact.item()) <= 1e-5 * abs(exact.item()):
        wrong.append(f"loss {loss.item()}, right is {exact.item()}")
    for name, found in (("scaled", grads), ("backward", half)):
        for i, (grad, slope) in enumerate(zip(found, slopes, strict=True)):
            error = (grad.double().cpu() - 0.5 * slope).norm()
            if not error <= TOLERANCE[dtypes[i]] * 0.5 * slope.norm():
                wrong.append(f"{name} gradient {i}: error {error:.2e}")
    return "; ".join(wrong[:3])
