"""Our training steps on one batch with learning rate 0, so that every step is the same."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.training_case import Case, eager, whole


def step(case: Case, method: str, way: str, precision: torch.dtype | None = None) -> Callable[[], object]:
    """A step of ``method`` taken one way: ``"by value"``, ``"fixed_shape"`` (eager both), or ``"recorded"``."""
    batch, now = next(case.batches(1))
    make = case.methods()[method]
    if way == "recorded":
        take = whole(make(fixed_shape=True), case.teacher, case.student, 0.0)
    else:
        take = eager(make(fixed_shape=way == "fixed_shape"), case.teacher, case.student, 0.0, precision)
    return lambda: take(batch, now)
