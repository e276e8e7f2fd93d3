"""Our training steps on one batch with learning rate 0, so that every step is the same."""

from __future__ import annotations

from collections.abc import Callable

from amkd_fast.methods import Batch, Losses
from amkd_fast.methods import StepContext as Moment
from benchmarks.training_case import Case, eager, whole


def step(case: Case, method: str, way: str, batch: Batch, now: Moment) -> Callable[[], Losses]:
    """A step of ``method`` taken one way: ``"by value"``, ``"fixed_shape"`` (eager both), or ``"recorded"``."""
    make = case.methods()[method]
    if way == "recorded":
        take = whole(make(fixed_shape=True), case.teacher, case.student, 0.0)
    else:
        take = eager(make(fixed_shape=way == "fixed_shape"), case.teacher, case.student, 0.0)
    return lambda: take(batch, now)
