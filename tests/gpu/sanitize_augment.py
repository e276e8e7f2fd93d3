"""Every plan of the kernel of joint augmentation once, small, held against the reference on a CPU, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from amkd_fast.ops.images import augment_operators as operators
from amkd_fast.ops.images import augment_reference as reference
from tests.gpu.device import DEVICE


class Case(NamedTuple):
    """One call of the operator on images of a shape."""

    plan: str
    shape: tuple[int, ...]
    threshold: int
    rows: bool


SHAPES = {
    "in shared memory": (3, 32, 32),
    "in shared memory, odd": (3, 33, 17),
    "grey": (1, 28, 28),
    "no inside": (1, 2, 9),
    "in scratch": (3, 120, 121),
}


def cases(short: bool) -> Iterator[Case]:
    """All of them; `short` has every barrier."""
    for plan, shape in SHAPES.items():
        for threshold in (2**32,) if short else (2**31, 2**32):
            yield Case(plan, shape, threshold, rows=threshold == 2**31)


def check(case: Case) -> str:
    """What is wrong with one case, empty if nothing is."""
    from amkd_fast.ops.images import augment

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (16, *case.shape), dtype=torch.uint8, generator=generator)
    rows = torch.arange(100, 116) if case.rows else None
    rest = (case.threshold, 2 ** len(reference.OPERATIONS) - 1, 77)
    want = reference.joint_augment(pixels, rows, 7, *rest)
    seed = torch.tensor(7, device=DEVICE)
    got = operators.joint_augment(
        augment._OPERATORS["cuda"], pixels.to(DEVICE), None if rows is None else rows.to(DEVICE), seed, *rest
    )
    wrong = int((got.cpu() != want).sum())
    return f"{wrong} levels differ" if wrong else ""
