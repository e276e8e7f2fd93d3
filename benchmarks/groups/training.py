"""Whole training steps: ResNet26 teaches ResNet8, 128 images of which at most 32 are attacked; and those on the digits.

A step is forward, backward and optimizer, timed as one call. The student learns by KD first, so that the attack finds
what it finds in training; then steps repeat themselves, with learning rate 0 on one batch. The eager loop draws targets
of its own, so it is held against ours in fp64 on the same bases, and the timed losses of ours against fp64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from amkd_fast import backends
from amkd_fast.methods import COUNTS, Batch
from amkd_fast.methods import StepContext as Moment
from amkd_fast.ops.attack import select_boundary_bases
from benchmarks import training_case
from benchmarks.contest import Contestant, Errors, WrongResult
from benchmarks.group import Group, Target
from benchmarks.groups import digits
from benchmarks.peers import attack_loops
from benchmarks.peers import training as peers
from benchmarks.peers.attack import public_bases
from benchmarks.precision import tf32
from benchmarks.training_case import BATCH, LIMIT, step_of

NOW = Moment(epoch=0, epochs=training_case.EPOCHS, draw=7)
EAGER, BARE, PLAIN = "eager loop", "bare passes", "plain KD"
METHODS = ("KD", "BSS official", "BSS near_boundary", "AMKD official", "AMKD")
EXACT = 1e-9  # relative, of a loss in fp64
SAME = 1e-3  # relative, of a loss in fp32, where one rounding can send an image another way
SOME = 16  # images in fp64, whose convolutions are slow


def groups() -> list[Group]:
    targets = (Target(5, "speed-up", 2.5, EAGER, "forward"), Target(5, "time", 1.15, BARE, "forward"))
    return [*(step(name, targets if name == "AMKD" else ()) for name in METHODS), *digits.groups()]


def step(name: str, targets: tuple[Target, ...]) -> Group:
    """A step of a method, forward, backward and optimizer."""

    def ours(images: Tensor, labels: Tensor) -> Tensor:
        return taken(name, images.device.type)()

    def rivals() -> list[Contestant]:
        calls = {
            EAGER: lambda images, labels: eager(name, images.device.type)(),
            BARE: lambda images, labels: bare(name, images.device.type)(),
            PLAIN: lambda images, labels: taken("KD", images.device.type)(),
        }
        return [Contestant(title, call) for title, call in calls.items() if (title, name) != (PLAIN, "KD")]

    def extras(device: str) -> dict[str, Any]:
        case = training_case.of_environment(device)
        found = {"setting": case.about, "agreement": agreement(device)}
        attack = case.methods()[name](fixed_shape=False)(clean(case), case.teacher, pupil(case), NOW).attack
        return found if attack is None else {**found, **dict(zip(COUNTS, attack.tolist(), strict=True))}

    return Group(
        "training",
        f"step {name}",
        {"B": BATCH} if name == "KD" else {"B": BATCH, "M": LIMIT},
        torch.float32,
        lambda device: tuple(clean(training_case.of_environment(device))[:2]),
        ours,
        rivals,
        directions=("forward",),
        reference=False,
        verify=verify,
        truth=lambda _, given: truth(name, given[0].device.type),
        extras=extras,
        targets=targets,
        yardsticks=(BARE, PLAIN),
    )


def clean(case: training_case.Case) -> Batch:
    """The batch that every step is made on; the student has not seen it."""
    return Batch(case.images[:BATCH], case.labels[:BATCH])


def pupil(case: training_case.Case) -> nn.Module:
    return copy.deepcopy(case.student).train()


@cache
def taken(name: str, device: str) -> Callable[[], Tensor]:
    case = training_case.of_environment(device)
    method = case.methods()[name](fixed_shape=False)
    return step_of(lambda own: method(clean(case), case.teacher, own, NOW).total, case.student)


@cache
def eager(name: str, device: str) -> Callable[[], Tensor]:
    case = training_case.of_environment(device)
    loud = attack_loops.quiet(case.teacher).requires_grad_()  # as the public trainer leaves it
    loss = peers.eager_kd
    if name != "KD":
        loss = peers.eager_loop(attack_loops.bss_loop, name.startswith("AMKD"), public_bases(LIMIT))
    return step_of(lambda own: loss(clean(case), loud, own), case.student)


@cache
def bare(name: str, device: str) -> Callable[[], Tensor]:
    case = training_case.of_environment(device)
    return peers.bare_passes(case.methods()[name](fixed_shape=False), clean(case), case.teacher, case.student, NOW)


def truth(name: str, device: str) -> dict[str, Tensor | float]:
    """By contestant: what it returns, in fp64; the eager loop's error against ours, in fp64 too."""
    case = training_case.of_environment(device)
    teacher, student = wide(case)
    batch, found = _double(clean(case)), agreement(device)
    expected: dict[str, Tensor | float] = {}
    for contestant, method in (("ours", name), (PLAIN, "KD")):
        with backends.backend("reference"):
            step = case.methods(torch.float64)[method](fixed_shape=False)
            expected[contestant] = step(batch, teacher, copy.deepcopy(student).train(), NOW).total.detach()
    expected[BARE] = copy.deepcopy(student).train()(batch.images).detach()
    official = "KD" if name == "KD" else f"{name.split()[0]} official"
    expected[EAGER] = found[f"{official}, eager loop"]
    return expected


def verify(entry: Contestant, given: tuple[Tensor, ...], expected: dict[str, Tensor | float]) -> Errors:
    """Relative to the largest entry of what is returned."""
    with tf32(False), entry.chosen():
        got = entry.call(*given).double()
    if entry.name == EAGER:
        if not got.isfinite():
            raise WrongResult(f"{EAGER}: its loss is {got.item()}")
        return Errors(expected[EAGER], None)
    wanted = expected["ours" if entry.ours else entry.name]
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    if not error <= SAME:
        raise WrongResult(f"{entry.name}: {error:.1e} from fp64, allowed is {SAME:g}")
    return Errors(error, None)


@cache
def agreement(device: str) -> dict[str, float]:
    """How far losses are apart in fp64: all methods' from the specification's, the official ones' from the loops'.

    Raises:
        WrongResult: Further than rounding takes them.
    """
    case = training_case.of_environment(device)
    teacher, student = wide(case)
    batch = _double(Batch(*(part[:SOME] for part in clean(case)[:2])))

    def ours(name: str, fold: bool) -> float:
        method = case.methods(torch.float64)[name](fixed_shape=False)
        method.fold = fold
        return method(batch, teacher, copy.deepcopy(student).train(), NOW).total.item()

    def theirs(loss: peers.Loss) -> float:
        return loss(batch, attack_loops.quiet(teacher), copy.deepcopy(student).train()).item()

    def select(*logits: Tensor) -> Any:
        return select_boundary_bases(*logits, LIMIT, seed=NOW.draw)

    found = {}
    for name in METHODS:
        with backends.backend("reference"):
            expected = ours(name, fold=True)
        found[f"{name}, reference"] = _apart(ours(name, fold=True), expected)
    found[f"KD, {EAGER}"] = _apart(ours("KD", fold=False), theirs(peers.eager_kd))
    for name, metric in (("BSS official", False), ("AMKD official", True)):
        mine = ours(name, fold=False)
        for title, attack in ((EAGER, attack_loops.bss_loop), ("lean loop", attack_loops.bss_loop_lean)):
            found[f"{name}, {title}"] = _apart(mine, theirs(peers.eager_loop(attack, metric, select)))
    if not all(apart <= EXACT for apart in found.values()):
        raise WrongResult(f"losses in fp64: {found}")
    return found


def wide(case: training_case.Case) -> tuple[nn.Module, nn.Module]:
    teacher, student = (copy.deepcopy(network).double() for network in (case.teacher, case.student))
    return teacher, student


def _double(batch: Batch) -> Batch:
    return batch._replace(images=batch.images.double())


def _apart(one: float, two: float) -> float:
    return abs(one - two) / abs(two)
