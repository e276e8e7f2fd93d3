"""Whole training steps: a teacher and a ResNet8, 128 images of which at most 32 are attacked; and those on the digits.

A step is forward, backward and optimizer, timed as one call. On a CPU ours brings its images into channels_last, in
which the student runs them; the same step on contiguous images shows what that gives. The student learns by KD first,
so that the attack finds what it finds in training; then steps repeat themselves, with learning rate 0 on one batch. The
eager loop draws classes of its own, so it is held against ours in fp64 on the same bases, and the timed losses of ours
against fp64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from math import nan
from typing import Any

import torch
from torch import Tensor

from amkd_fast import backends
from amkd_fast.methods import COUNTS, Batch
from amkd_fast.ops.attack import select_boundary_bases
from benchmarks.baselines.attack import public_bases
from benchmarks.baselines.attack_loops import loud
from benchmarks.baselines.training import BARE, bare_passes, eager_loss
from benchmarks.contest import Contestant, Errors, distance, within, without_tf32
from benchmarks.group import Goal, Group
from benchmarks.groups import digits
from benchmarks.training_case import BATCH, LIMIT, NOW, method_step, of_environment, step_of

EAGER, PLAIN, CONTIGUOUS = "eager loop", "plain KD", "contiguous images"
METHODS = ("KD", "BSS official", "BSS near_boundary", "AMKD official", "AMKD")
EXACT = 1e-9  # relative, of a loss in fp64
SAME = 1e-3  # relative, of a loss in fp32, where one rounding can send an image another way
SOME = 16  # images in fp64, whose convolutions are slow


def groups() -> list[Group]:
    goals = (Goal("speed-up", 3.2, EAGER, "forward"), Goal("time", 0.95, BARE, "forward"))
    return [*(step(name, goals if name == "AMKD" else ()) for name in METHODS), *digits.groups()]


def step(name: str, goals: tuple[Goal, ...] = ()) -> Group:
    """A step of a method, forward, backward and optimizer."""

    def by(make: Callable[[str, str], Callable[[], Tensor]], method: str = name) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, labels: make(method, images.device.type)()

    def others() -> list[Contestant]:
        plain = [] if name == "KD" else [Contestant(PLAIN, by(taken, "KD"))]
        same = Contestant(CONTIGUOUS, by(on_contiguous))
        return [Contestant(EAGER, by(eager)), Contestant(BARE, by(bare)), same, *plain]

    def extras(given: tuple[Tensor, ...]) -> dict[str, Any]:
        case = of_environment(given[0].device.type)
        attack = case.method(name)(case.batch, case.teacher, case.pupil(), NOW).attack
        counts = {} if attack is None else dict(zip(COUNTS, attack.tolist(), strict=True))
        return {"setting": case.setting.about, **counts}

    def draw() -> tuple[Tensor, ...]:
        return tuple(of_environment("cpu").batch[:2])

    sizes = {"B": BATCH} if name == "KD" else {"B": BATCH, "M": LIMIT}
    more = {"verify": verify, "truth": lambda _, given: truth(name, given[0].device.type), "extras": extras}
    more |= {
        "others": others,
        "reference": False,
        "goals": goals,
        "yardsticks": (BARE, PLAIN, CONTIGUOUS),
        "floor": BARE,
    }
    return Group("training", f"step {name}", sizes, torch.float32, draw, by(taken), **more)


on_contiguous = cache(method_step)


@cache
def taken(name: str, device: str) -> Callable[[], Tensor]:
    memory_format = torch.channels_last if device == "cpu" else torch.contiguous_format
    return method_step(name, device, memory_format=memory_format)


@cache
def eager(name: str, device: str) -> Callable[[], Tensor]:
    case = of_environment(device)
    teacher, student, select = loud(case.teacher), case.pupil(), public_bases(LIMIT)
    return step_of(lambda: eager_loss(name, case.batch, teacher, student, select), student)


@cache
def bare(name: str, device: str) -> Callable[[], Tensor]:
    case = of_environment(device)
    return bare_passes(case.method(name), case.batch, case.teacher, case.pupil(), NOW)


def truth(name: str, device: str) -> dict[str, Tensor | float]:
    """By contestant: what it returns, in fp64; the eager loop's error against ours on the same bases, in fp64 too."""
    case = of_environment(device)
    teacher = copy.deepcopy(case.teacher).double()
    batch = case.batch._replace(images=case.batch.images.double())

    def ours(method: str, batch: Batch = batch, fold: bool = True) -> Tensor:
        step = case.method(method, dtype=torch.float64)
        step.fold = fold
        return step(batch, teacher, case.pupil(torch.float64), NOW).total.detach()

    with backends.backend("reference"):
        expected = {"ours": ours(name), PLAIN: ours("KD"), BARE: case.pupil(torch.float64)(batch.images).detach()}
    some = Batch(*(part[:SOME] for part in batch[:2]))
    select = partial(select_boundary_bases, limit=LIMIT, seed=NOW.draw)
    theirs = eager_loss(name, some, teacher, case.pupil(torch.float64), select).detach()
    mine = ours("KD" if name == "KD" else f"{name.split()[0]} official", some, fold=False)
    return {**expected, EAGER: (abs(theirs - mine) / abs(mine)).item()}


def verify(entry: Contestant, given: tuple[Tensor, ...], expected: dict[str, Tensor | float]) -> Errors:
    """Relative to the largest entry of what is returned."""
    with without_tf32(), entry.chosen():
        got = entry.call(*given).double()
    if entry.name == EAGER:
        return within(entry, expected[EAGER] if got.isfinite() else nan, EXACT, "from ours in fp64")
    wanted = expected["ours" if entry.ours or entry.name == CONTIGUOUS else entry.name]
    return within(entry, distance(got, wanted), SAME, "from fp64")
