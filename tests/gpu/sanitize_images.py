"""Every plan of the images kernel once, small, held against the reference on a CPU, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from amkd_fast.ops.images import operators, reference
from tests.gpu.device import DEVICE

SCALE, SEED = 0.0157, 7


class Case(NamedTuple):
    """One call of the operator on images of a shape."""

    plan: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    pad: int = 4
    flip: bool = True
    offset: int = 0  # numbers by which the result is not aligned


SHAPES = {
    "one block": (3, 32, 32),
    "several blocks": (3, 64, 72),
    "number by number": (3, 7, 5),
    "several blocks, number by number": (1, 61, 61),
}


def cases(short: bool) -> Iterator[Case]:
    """All of them; `short` leaves out all, as the kernel has no barrier."""
    if short:
        return
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for plan, shape in SHAPES.items():
            for channels_last in (False, True):
                yield Case(plan, shape, dtype, channels_last)
            yield Case(plan, shape, dtype, offset=1)
            yield Case(plan, shape, dtype, pad=0, flip=False)
            yield Case(plan, shape, dtype, pad=100, flip=False)


def check(case: Case) -> str:
    """What is wrong with one case, empty if nothing is."""
    from amkd_fast.ops.images import native

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (6, *case.shape), dtype=torch.uint8, generator=generator)
    index = torch.tensor([5, 0, 3, 3, -1, 6])  # of the last two the nearest row takes the place
    work = torch.float64 if case.dtype == torch.float64 else torch.float32
    shift = torch.linspace(-1, 1, case.shape[0], dtype=work)
    want = reference.crop_flip(pixels, index, SCALE, shift, case.pad, case.flip, SEED).to(case.dtype)

    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format
    strides = torch.empty_like(want, memory_format=memory_format).stride()
    home = torch.full((want.numel() + case.offset,), torch.nan, dtype=case.dtype, device=DEVICE)
    out = home.as_strided(want.shape, strides, case.offset)
    numbers = (SCALE, shift.to(DEVICE), case.pad, case.flip, torch.tensor(SEED, device=DEVICE))
    operators.crop_flip(native.operator, out, pixels.to(DEVICE), index.to(DEVICE), *numbers)
    wrong = int((out.cpu() != want).sum())
    return f"{wrong} numbers differ" if wrong else ""
