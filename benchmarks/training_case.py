"""A teacher, a student that has learnt something, batches, and the ways in which their training step is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import CrossBatchMemory
from amkd_fast.attacks.capture import CudaGraph
from amkd_fast.distill.methods import AMKD, BSS, KD, Batch, Losses, Method, Moment
from amkd_fast.distill.networks import Spec, build
from amkd_fast.distill.whole_step import WholeStep
from benchmarks import setting
from benchmarks.setting import Setting

EPOCHS, MEMORY = 60, 512
BATCH, LIMIT, LEARNING = 128, 32, 150  # images, attacked ones, steps before anything is measured
NOW = Moment(epoch=0, epochs=EPOCHS, draw=7)


class Way(NamedTuple):
    """A way to take a step, with the student that learns by it."""

    take: Callable[[Batch, Moment], Losses]
    student: nn.Module


class Case(NamedTuple):
    setting: Setting
    student: nn.Module
    size: int = BATCH
    limit: int = LIMIT

    @property
    def teacher(self) -> nn.Module:
        return self.setting.network

    @property
    def device(self) -> str:
        return self.setting.images.device.type

    @property
    def clean(self) -> Batch:
        """The batch of every step that is measured; the student has not seen it."""
        return Batch(self.setting.images[: self.size], self.setting.labels[: self.size])

    def pupil(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return copy.deepcopy(self.student).to(dtype).train()

    def methods(self, dtype: torch.dtype = torch.float32) -> dict[str, Callable[..., Method]]:
        # On the device: a copy from the host is waited for, and cannot be part of a CUDA graph.
        bounds = {name: part.to(dtype) for name, part in self.setting.bounds.items()}
        near, official = {"attack": bounds, "limit": self.limit}, {"preset": "official", "limit": self.limit}

        def remembering(**more: bool) -> Method:
            memory = CrossBatchMemory(MEMORY, 10, dtype=dtype, device=self.device)
            return AMKD(**near, **more, margin=3.0, memory=memory)

        return {
            "KD": lambda fixed_shape: KD(),
            "BSS official": lambda **more: BSS(**official, **more),
            "BSS near_boundary": lambda **more: BSS(**near, **more),
            "AMKD official": lambda **more: AMKD(**official, **more),
            "AMKD": lambda **more: AMKD(**near, **more),
            "AMKD with memory": remembering,
        }

    def batches(self, steps: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Batch, Moment]]:
        """The same ones at every call, over two epochs."""
        draws = torch.Generator().manual_seed(3)
        images, labels = self.setting.images, self.setting.labels
        for step in range(steps):
            rows = torch.randint(len(labels), (self.size,), generator=draws).to(self.device)
            yield Batch(images[rows].to(dtype), labels[rows]), Moment(2 * step // steps, EPOCHS, 1000 + step)


@cache
def of_environment(device: str) -> Case:
    found = setting.of_environment(device)
    return Case(found, learnt("resnet8", found, LEARNING))


@cache
def rehearsal() -> Case:
    """What takes a second on a CPU. The teacher need not be right; the two need to agree on whom to attack."""
    found = setting.synthetic("small-8-1", 256, 16, epochs=4)
    found = found._replace(labels=found.network(found.images).argmax(1))
    return Case(found, learnt("small-4-1", found, 40), size=16, limit=6)


def learnt(name: str, teacher: Setting, steps: int) -> nn.Module:
    """A student after some steps of KD."""
    student = build(Spec(name, teacher.images.shape[1], 10), 0).to(teacher.images.device).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images, labels = teacher.images[BATCH:], teacher.labels[BATCH:]
    draws, method = torch.Generator().manual_seed(0), KD()
    for step in range(steps):
        rows = torch.randint(len(labels), (BATCH,), generator=draws)
        optimizer.zero_grad()
        batch = Batch(images[rows], labels[rows])
        method(batch, teacher.network, student, Moment(0, EPOCHS, step)).total.backward()
        optimizer.step()
    return student


def step_of(loss: Callable[[nn.Module], Tensor], student: nn.Module) -> Callable[[], Tensor]:
    """A whole step on a copy of the student; the learning rate is 0, so that every step is the same."""
    student = copy.deepcopy(student).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        total = loss(student)
        total.backward()
        optimizer.step()
        return total.detach()

    return step


def step(case: Case, method: str, kind: str) -> Callable[[], Losses]:
    """A step of a method on the clean batch with learning rate 0: ``"fixed_shape"`` (eager) or ``"recorded"``."""
    make = whole if kind == "recorded" else eager
    way = make(case.methods()[method](fixed_shape=True), case.teacher, case.student, 0.0)
    return lambda: way.take(case.clean, NOW)


def eager(method: Method, teacher: nn.Module, student: nn.Module, lr: float) -> Way:
    """A step on a copy of the student, as a training loop takes it."""
    student = copy.deepcopy(student).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)

    def take(batch: Batch, moment: Moment) -> Losses:
        optimizer.zero_grad()
        losses = method(batch, teacher, student, moment)
        losses.total.backward()
        optimizer.step()
        return losses._replace(total=losses.total.detach())

    return Way(take, student)


class Rehearsed:
    """In place of a CUDA graph where there is none: the function itself."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.replay = function
        function()


def whole(method: Method, teacher: nn.Module, student: nn.Module, lr: float) -> Way:
    """The recorded step on a copy of the student."""
    student = copy.deepcopy(student).train()
    like = next(student.parameters())
    rate = torch.tensor(lr, device=like.device)
    optimizer = torch.optim.SGD(student.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, fused=True)
    graph = CudaGraph if like.is_cuda else Rehearsed
    return Way(WholeStep(method, teacher, student, optimizer, graph=graph), student)
