"""A teacher, a student that has learnt something, a batch, and the ways in which their training step is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast.distill.networks import Spec, build
from amkd_fast.distill.whole_step import WholeStep
from amkd_fast.methods import AMKD, BSS, KD, Batch, Method, StepContext
from benchmarks import setting

EPOCHS = 60
BATCH, LIMIT, LEARNING = 128, 32, 150  # images, attacked ones, steps before anything is measured
NOW = StepContext(epoch=0, epochs=EPOCHS, draw=7)


class Case(NamedTuple):
    teacher: nn.Module
    student: nn.Module
    batch: Batch  # of every step that is measured; the student has not seen it
    setting: setting.Setting

    def pupil(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        return copy.deepcopy(self.student).to(dtype).train()

    def method(self, name: str, fixed_shape: bool = False, dtype: torch.dtype = torch.float32) -> Method:
        """``"KD"``, or ``"BSS"`` or ``"AMKD"`` with a preset; by default ``"near_boundary"``."""
        if name == "KD":
            return KD()
        kind, _, preset = name.partition(" ")
        # On the device: a copy from the host is waited for, and cannot be part of a CUDA graph.
        bounds = {name: part.to(dtype) for name, part in self.setting.bounds.items()}
        attack = {"preset": "official"} if preset == "official" else {"attack": bounds}
        return {"BSS": BSS, "AMKD": AMKD}[kind](**attack, limit=LIMIT, fixed_shape=fixed_shape)


@cache
def of_environment(device: str) -> Case:
    """The setting's teacher, and a ResNet8 after some steps of KD."""
    found = setting.of_environment(device)
    student = build(Spec("resnet8", found.images.shape[1], 10), 0).to(device).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    images, labels = found.images[BATCH:], found.labels[BATCH:]
    draws, method = torch.Generator().manual_seed(0), KD()
    for step in range(LEARNING):
        rows = torch.randint(len(labels), (BATCH,), generator=draws)
        optimizer.zero_grad()
        batch = Batch(images[rows], labels[rows])
        method(batch, found.network, student, StepContext(0, EPOCHS, step)).total.backward()
        optimizer.step()
    return Case(found.network, student, Batch(found.images[:BATCH], found.labels[:BATCH]), found)


def step_of(loss: Callable[..., Tensor], student: nn.Module) -> Callable[..., Tensor]:
    """A whole step of the student; the learning rate is 0, so that every step is the same."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def step(*given: Batch) -> Tensor:
        optimizer.zero_grad()
        total = loss(*given)
        total.backward()
        optimizer.step()
        return total.detach()

    return step


def method_step(
    name: str, device: str, kind: str = "", memory_format: torch.memory_format = torch.contiguous_format
) -> Callable[[], Tensor]:
    """Of a method on the case's batch: ``"fixed_shape"`` with padded attacks, ``"recorded"`` as one CUDA graph.

    The step brings the images into ``memory_format``.
    """
    case = of_environment(device)
    method, student = case.method(name, fixed_shape=bool(kind)), case.pupil()

    def loss() -> Tensor:
        batch = case.batch._replace(images=case.batch.images.contiguous(memory_format=memory_format))
        return method(batch, case.teacher, student, NOW).total

    if kind != "recorded":
        return step_of(loss, student)
    rate = torch.tensor(0.0, device=device)
    optimizer = torch.optim.SGD(student.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, fused=True)
    whole = WholeStep(method, case.teacher, student, optimizer)
    return lambda: whole(case.batch, NOW).total
