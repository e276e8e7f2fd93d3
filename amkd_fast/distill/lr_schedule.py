"""The learning rate of every step: a factor on the setting ``lr``, by pure functions, which need no state to resume."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise

from amkd_fast.distill.errors import UserError, short
from amkd_fast.distill.settings import LRSchedule, Settings

# Of one-cycle, as torch.optim.lr_scheduler.OneCycleLR has them.
RISE, START, END = 0.3, 1.0 / 25.0, 1.0 / 25.0e4


def of(settings: Settings, epochs: int, steps: int) -> Callable[[int], float]:
    """The factor of a training, by the number of its step from 0.

    A warm-up is in front of the schedule: the factor rises as 1/w, 2/w, … 1 over the w steps of ``warmup_epochs``, and
    cosine falls over the steps that are left. Milestones are epochs of the whole training, warm-up and all.

    Args:
        settings: ``schedule``, ``warmup_epochs``, ``lr_milestones`` and ``lr_factor``.
        epochs: Of the training.
        steps: In an epoch.
    """
    warm, whole = settings.warmup_epochs * steps, epochs * steps
    drops = [epoch * steps for epoch in milestones(settings.lr_milestones)] if settings.schedule == "step" else []
    shapes: dict[LRSchedule, Callable[[int], float]] = {
        "cosine": lambda step: cosine((step - warm) / max(whole - warm, 1)),
        "step": lambda step: settings.lr_factor ** bisect_right(drops, step),
        "one-cycle": lambda step: one_cycle(step, whole),
        "constant": lambda step: 1.0,
    }
    shape = shapes[settings.schedule]
    return lambda step: (step + 1) / warm if step < warm else shape(step)


def cosine(progress: float) -> float:
    """1 → 0."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def one_cycle(step: int, steps: int) -> float:
    """1/25 → 1 in the first 0.3 of the steps → 1/250000, both as halves of a cosine; momentum stays as it is.

    Source:
        Smith and Topin, Super-Convergence (2018), as torch.optim.lr_scheduler.OneCycleLR has it.
    """
    peak = max(RISE * steps - 1, 0.0)
    if step < peak:
        return 1.0 + (START - 1.0) * cosine(step / peak)
    return END + (1.0 - END) * cosine((step - peak) / max(steps - 1 - peak, 1.0))


def milestones(text: str) -> list[int]:
    """The epochs that a list names.

    Raises:
        ValueError: They are not whole numbers of at least 1 that rise.
    """
    found = [int(word) for word in text.split(",")]
    if found[0] < 1 or any(one >= next_ for one, next_ in pairwise(found)):
        raise ValueError(text)
    return found


def check(settings: Settings, of: str = "") -> None:
    """Raise :class:`UserError` for a schedule that cannot be followed.

    Args:
        settings: Of a student, or those of a teacher in a student's places.
        of: What options begin with in the message, ``"teacher-"`` of a teacher.
    """
    epochs, warm = settings.epochs, settings.warmup_epochs
    if warm and settings.schedule == "one-cycle":
        raise UserError(f"--{of}warmup-epochs {warm}: --{of}schedule one-cycle begins with a rise of its own")
    if warm >= epochs:
        raise UserError(f"--{of}warmup-epochs {warm}: must be below --{of}epochs {epochs}")
    given = short(settings.lr_milestones)[1:-1]
    if settings.schedule != "step":
        if settings.lr_milestones and not (
            of and settings.teacher_lr_milestones is None
        ):  # a teacher has inherited them
            raise UserError(f"--{of}lr-milestones {given}: are for --{of}schedule step, not {settings.schedule}")
        return
    if not given:
        raise UserError(f"--{of}schedule step: needs --{of}lr-milestones, as 150,180,210")
    try:
        well = milestones(settings.lr_milestones)[-1] < epochs
    except ValueError:
        well = False
    if not well:
        raise UserError(
            f"--{of}lr-milestones {given}: must be whole numbers that rise, from 1, "
            f"below --{of}epochs {epochs}, with commas between"
        )
