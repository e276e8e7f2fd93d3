"""Whole training steps: a teacher and a ResNet8, 128 images of which at most 32 are attacked; and those on the digits.

A step is forward, backward and optimizer, timed as one call. The student learns by KD first, so that the attack finds
what it finds in training; then steps repeat themselves, with learning rate 0 on one batch. The eager loop draws classes
of its own, so it is held against ours in fp64 on the same bases, and the timed losses of ours against fp64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from amkd_fast import backends
from amkd_fast.methods import COUNTS, Batch
from amkd_fast.ops.attack import select_boundary_bases
from benchmarks.baselines import attack_loops
from benchmarks.baselines import training as baselines
from benchmarks.baselines.attack import public_bases
from benchmarks.contest import Contestant, Errors, WrongResult, tf32
from benchmarks.group import Goal, Group
from benchmarks.groups import digits
from benchmarks.training_case import BATCH, LIMIT, NOW, of_environment, step_of

EAGER, BARE, PLAIN = "eager loop", "bare passes", "plain KD"
METHODS = ("KD", "BSS official", "BSS near_boundary", "AMKD official", "AMKD")
EXACT = 1e-9  # relative, of a loss in fp64
SAME = 1e-3  # relative, of a loss in fp32, where one rounding can send an image another way
SOME = 16  # images in fp64, whose convolutions are slow


def groups() -> list[Group]:
    goals = (Goal("speed-up", 2.5, EAGER, "forward"), Goal("time", 1.15, BARE, "forward"))
    return [*(step(name, goals if name == "AMKD" else ()) for name in METHODS), *digits.groups()]


def step(name: str, goals: tuple[Goal, ...]) -> Group:
    """A step of a method, forward, backward and optimizer."""

    def on(make: Callable[[str, str], Callable[[], Tensor]], method: str = name) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda images, labels: make(method, images.device.type)()

    def rivals() -> list[Contestant]:
        calls = {EAGER: on(eager), BARE: on(bare), PLAIN: on(taken, "KD")}
        return [Contestant(title, call) for title, call in calls.items() if (title, name) != (PLAIN, "KD")]

    def extras(device: str) -> dict[str, Any]:
        case = of_environment(device)
        attack = case.method(name)(case.clean, case.teacher, case.pupil(), NOW).attack
        counts = {} if attack is None else dict(zip(COUNTS, attack.tolist(), strict=True))
        return {"setting": case.setting.about, **counts}

    sizes = {"B": BATCH} if name == "KD" else {"B": BATCH, "M": LIMIT}
    more = {"verify": verify, "truth": lambda _, given: truth(name, given[0].device.type), "extras": extras}
    more |= {"reference": False, "goals": goals, "yardsticks": (BARE, PLAIN)}

    def inputs(device: str) -> tuple[Tensor, ...]:
        return tuple(of_environment(device).clean[:2])

    return Group("training", f"step {name}", sizes, torch.float32, inputs, on(taken), rivals, **more)


@cache
def taken(name: str, device: str) -> Callable[[], Tensor]:
    case = of_environment(device)
    method = case.method(name)
    return step_of(lambda own: method(case.clean, case.teacher, own, NOW).total, case.student)


@cache
def eager(name: str, device: str) -> Callable[[], Tensor]:
    case = of_environment(device)
    loud = attack_loops.quiet(case.teacher).requires_grad_()  # as the public trainer leaves it
    loss = baselines.eager_kd
    if name != "KD":
        loss = baselines.eager_loop(attack_loops.bss_loop, name.startswith("AMKD"), public_bases(LIMIT))
    return step_of(lambda own: loss(case.clean, loud, own), case.student)


@cache
def bare(name: str, device: str) -> Callable[[], Tensor]:
    case = of_environment(device)
    return baselines.bare_passes(case.method(name), case.clean, case.teacher, case.student, NOW)


def truth(name: str, device: str) -> dict[str, Tensor | float]:
    """By contestant: what it returns, in fp64; the eager loop's error against ours, in fp64 too."""
    case = of_environment(device)
    teacher, student = copy.deepcopy(case.teacher).double(), case.pupil(torch.float64)
    batch = case.clean._replace(images=case.clean.images.double())

    def ours(method: str, batch: Batch = batch, fold: bool = True) -> Tensor:
        step = case.method(method, dtype=torch.float64)
        step.fold = fold
        return step(batch, teacher, copy.deepcopy(student), NOW).total.detach()

    with backends.backend("reference"):
        expected = {"ours": ours(name), PLAIN: ours("KD")}
    expected[BARE] = copy.deepcopy(student)(batch.images).detach()
    some = Batch(batch.images[:SOME], batch.labels[:SOME])
    official = "KD" if name == "KD" else f"{name.split()[0]} official"
    theirs, mine = eager_on(name, some, teacher, copy.deepcopy(student)), ours(official, some, fold=False)
    expected[EAGER] = abs(theirs - mine).item() / abs(mine).item()
    return expected


def eager_on(name: str, batch: Batch, teacher: nn.Module, student: nn.Module) -> Tensor:
    """The eager loop's loss on the bases that ours are given."""
    loss = baselines.eager_kd
    if name != "KD":
        select = partial(select_boundary_bases, limit=LIMIT, seed=NOW.draw)
        loss = baselines.eager_loop(attack_loops.bss_loop, name.startswith("AMKD"), select)
    return loss(batch, attack_loops.quiet(teacher), student).detach()


def verify(entry: Contestant, given: tuple[Tensor, ...], expected: dict[str, Tensor | float]) -> Errors:
    """Relative to the largest entry of what is returned."""
    with tf32(False), entry.chosen():
        got = entry.call(*given).double()
    if entry.name == EAGER:
        if not (got.isfinite() and expected[EAGER] <= EXACT):
            raise WrongResult(f"{EAGER}: its loss is {got.item()}, in fp64 {expected[EAGER]:.1e} from ours")
        return Errors(expected[EAGER], None)
    wanted = expected["ours" if entry.ours else entry.name]
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    if not error <= SAME:
        raise WrongResult(f"{entry.name}: {error:.1e} from fp64, allowed is {SAME:g}")
    return Errors(error, None)
