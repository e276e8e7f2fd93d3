"""One training step on the handwritten digits, by method: what attacked images and triplets add to KD.

A teacher and a student of a few epochs are trained first, as the attack's work depends on what they know. The step then
repeats itself: learning rate 0, one batch, one draw. The reference is the same step of ours with every operation in
plain PyTorch, nobody else's loop: it says what the operations bring, and the limit are the passes through the networks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from amkd_fast.distill.settings import METHODS, Settings
from amkd_fast.methods import COUNTS, Batch, Losses, Method, StepContext
from benchmarks.baselines.training import BARE, bare_passes
from benchmarks.contest import Contestant, Errors, distance, reference, within
from benchmarks.group import Group
from benchmarks.training_case import step_of

SETTINGS = Settings(teacher_epochs=8, epochs=12)
NOW = StepContext(epoch=10, epochs=60, draw=7)  # when the zoo attacks, too
SAME = 1e-3  # relative to the largest; of loss and gradients against the step on the reference


def groups() -> list[Group]:
    return [digits_step(name) for name in METHODS if name != "crd"]  # whose memory makes every step another one


def digits_step(name: str) -> Group:
    def draw() -> tuple[Any, ...]:
        return tuple(batch("cpu"))

    def ours(*parts: Any) -> Tensor:
        return taken(name, parts[0].device.type)[0](Batch(*parts))

    def answer(entry: Contestant, given: tuple[Any, ...]) -> Tensor:
        """Loss and gradients."""
        with entry.chosen():
            total = entry.call(*given)
        _, student = taken(name, given[0].device.type)
        return torch.cat([total.view(1), *(parameter.grad.flatten() for parameter in student.parameters())])

    def passes(*parts: Any) -> Tensor:
        return bare(name, parts[0].device.type)()

    def verify(entry: Contestant, given: tuple[Any, ...], expected: Tensor) -> Errors:
        if entry.name == BARE:  # what else they should return no one says
            return within(entry, 0.0 if entry.call(*given).isfinite().all() else nan, SAME, "from numbers")
        return within(entry, distance(answer(entry, given), expected), SAME, "from the step on the reference")

    def extras(given: tuple[Any, ...]) -> dict[str, int]:
        losses, _ = losses_of(name, given[0].device.type)
        attack = losses(Batch(*given)).attack
        return {} if attack is None else dict(zip(COUNTS, attack.tolist(), strict=True))

    # No operation of ours is in a student alone: the reference's is the same step.
    more = {"reference": name != "student", "extras": extras, "verify": verify, "needs": ("lightning", "scikit-learn")}
    more |= {"others": lambda: [Contestant(BARE, passes)], "floor": BARE, "yardsticks": (BARE, "reference")}
    more["truth"] = lambda call, given: answer(reference(call), given)
    return Group("training", f"digits step {name}", {"B": SETTINGS.batch_size}, torch.float32, draw, ours, **more)


@cache
def networks(device: str) -> tuple[Any, Any, nn.Module]:
    """The data, the teacher and a student that knows something; trained on a CPU, once."""
    from amkd_fast.distill import data as datasets
    from amkd_fast.distill import training_runs
    from amkd_fast.distill.teacher import Teacher

    if device != "cpu":
        data, teacher, student = networks("cpu")
        data = data.to(device)
        return data, Teacher(copy.deepcopy(teacher.network).to(device), data), copy.deepcopy(student).to(device)
    data = datasets.load(SETTINGS)
    teacher = Teacher(training_runs.train_teacher(data, SETTINGS)[0].network, data)
    return data, teacher, training_runs.train_student("kd", 0, teacher, data, SETTINGS).network


def batch(device: str) -> Batch:
    from amkd_fast.distill.data import Batches

    data, teacher, _ = networks(device)
    return teacher.inform(next(iter(Batches(data.student, SETTINGS.batch_size, 0, data.augment))))


@cache
def bare(name: str, device: str) -> Callable[[], Tensor]:
    method, *both = parts_of(name, device)
    return bare_passes(method, batch(device), *both, NOW)


def parts_of(name: str, device: str) -> tuple[Method, nn.Module, nn.Module]:
    """A method, the teacher, and a student of its own."""
    from amkd_fast.distill import build

    data, teacher, student = networks(device)
    return build.method(name, SETTINGS, data), teacher.network, copy.deepcopy(student).train().requires_grad_()


def losses_of(name: str, device: str) -> tuple[Callable[[Batch], Losses], nn.Module]:
    """A method on a batch, and the student whose losses they are."""
    method, teacher, student = parts_of(name, device)
    return lambda batch: method(batch, teacher, student, NOW), student


@cache
def taken(name: str, device: str) -> tuple[Callable[[Batch], Tensor], nn.Module]:
    """The step, and the student that it is taken on."""
    losses, student = losses_of(name, device)
    return step_of(lambda batch: losses(batch).total, student), student
