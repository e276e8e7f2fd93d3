"""A teacher, a student that has learnt something, batches, and the ways in which their training step is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from amkd_fast import CrossBatchMemory
from amkd_fast.attacks.capture import CudaGraph
from amkd_fast.distill.networks import Spec, build
from amkd_fast.distill.whole_step import WholeStep
from amkd_fast.methods import AMKD, BSS, KD, Batch, Losses, Method
from amkd_fast.methods import StepContext as Moment
from benchmarks import cifar_teacher, whole_attack
from benchmarks.cifar_teacher import LOWER, UPPER
from benchmarks.peers.attack_loops import quiet
from benchmarks.tape import Tape

EPOCHS, MEMORY = 60, 512
BATCH, LIMIT, LEARNING = 128, 32, 150  # images, attacked ones, steps before anything is measured
STUDENT = Spec("resnet8", 3, 10)


class Way(NamedTuple):
    """A way to take a step, with the student that learns by it."""

    take: Callable[[Batch, Moment], Losses]
    student: nn.Module

    def __call__(self, batch: Batch, moment: Moment) -> Losses:
        return self.take(batch, moment)


class Case(NamedTuple):
    """What is trained; ``small`` for a rehearsal."""

    device: str
    teacher: nn.Module
    student: nn.Module
    images: Tensor  # normalised
    labels: Tensor
    batch: int
    limit: int
    about: dict[str, Any]

    def methods(self, dtype: torch.dtype = torch.float32) -> dict[str, Callable[..., Method]]:
        # On the device: a copy from the host is waited for, and cannot be part of a CUDA graph.
        bounds = {"lower": LOWER.to(self.device, dtype), "upper": UPPER.to(self.device, dtype)}
        near = {"attack": bounds, "limit": self.limit}

        def remembering(**more: Any) -> Method:
            return AMKD(
                **near, **more, margin=3.0, memory=CrossBatchMemory(MEMORY, 10, dtype=dtype, device=self.device)
            )

        return {
            "KD": lambda fixed_shape: KD(),
            "BSS official": lambda **more: BSS(preset="official", limit=self.limit, **more),
            "BSS near_boundary": lambda **more: BSS(**near, **more),
            "AMKD official": lambda **more: AMKD(preset="official", limit=self.limit, **more),
            "AMKD": lambda **more: AMKD(**near, **more),
            "AMKD with memory": remembering,
        }

    def batches(self, steps: int, dtype: torch.dtype = torch.float32) -> Iterator[tuple[Batch, Moment]]:
        """The same ones at every call, over two epochs."""
        draws = torch.Generator().manual_seed(3)
        for step in range(steps):
            rows = torch.randint(len(self.labels), (self.batch,), generator=draws).to(self.device)
            yield Batch(self.images[rows].to(dtype), self.labels[rows]), Moment(2 * step // steps, EPOCHS, 1000 + step)


def case(cifar: Path | None, teacher: Path | None, device: str) -> Case:
    """The teacher of :func:`benchmarks.whole_attack.setting`, and a ResNet8 after a little KD; on a CPU small ones."""
    small = device == "cpu"
    setting = (_rehearsal() if small else whole_attack.setting(cifar, teacher)).to(device)
    network = setting.network.requires_grad_(False)
    student = build(STUDENT._replace(name="small-4-1") if small else STUDENT, 0).to(device)
    student = learnt(student, network, setting.pixels, setting.labels, 40 if small else LEARNING)
    sizes = {"batch": 16, "limit": 6} if small else {"batch": BATCH, "limit": LIMIT}
    images = cifar_teacher.normalise(setting.pixels)
    return Case(device, network, student, images, setting.labels, **sizes, about=setting.about)


@cache
def of_environment(device: str) -> Case:
    """The same at its full size on every device, from what the environment names; the first batch is new to it."""
    network, pixels, labels, about, _ = whole_attack.of_environment(device)
    network = quiet(network)
    student = build(STUDENT, 0).to(device)
    student = learnt(student, network, pixels[BATCH:], labels[BATCH:], LEARNING)
    return Case(device, network, student, cifar_teacher.normalise(pixels), labels, BATCH, LIMIT, about)


def learnt(student: nn.Module, teacher: nn.Module, pixels: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """The student after some steps of KD."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    draws, method = torch.Generator().manual_seed(0), KD()
    for step in range(steps):
        rows = torch.randint(len(labels), (BATCH,), generator=draws)
        batch = Batch(cifar_teacher.normalise(pixels[rows]), labels[rows])
        optimizer.zero_grad()
        method(batch, teacher, student.train(), Moment(0, EPOCHS, step)).total.backward()
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


def _rehearsal() -> whole_attack.Setting:
    """What takes a second on a CPU."""
    network, (pixels, labels) = build(STUDENT._replace(name="small-8-1"), 0), whole_attack.patterns(256, 1)
    cifar_teacher.train(network, pixels, labels, epochs=4, batch=16)
    pixels = pixels[..., ::2, ::2].contiguous()
    with torch.no_grad():  # it need not be right; the two need to agree on whom to attack
        labels = network.eval()(cifar_teacher.normalise(pixels)).argmax(1)
    about = {"images": "a rehearsal: the numbers mean nothing"}
    return whole_attack.Setting(network, pixels, labels, about)


def graph(device: str) -> type:
    return CudaGraph if device == "cuda" else Tape


def eager(
    method: Method, teacher: nn.Module, student: nn.Module, lr: float, precision: torch.dtype | None = None
) -> Way:
    """A step on a copy of the student, as a training loop takes it."""
    student = copy.deepcopy(student).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    device = next(student.parameters()).device.type

    def take(batch: Batch, moment: Moment) -> Losses:
        optimizer.zero_grad()
        with autocast(device, precision):
            losses = method(batch, teacher, student, moment)
        losses.total.backward()
        optimizer.step()
        return losses._replace(total=losses.total.detach())

    return Way(take, student)


def whole(method: Method, teacher: nn.Module, student: nn.Module, lr: float) -> Way:
    """The recorded step on a copy of the student."""
    student = copy.deepcopy(student).train()
    like = next(student.parameters())
    rate = torch.tensor(lr, device=like.device)
    optimizer = torch.optim.SGD(student.parameters(), lr=rate, momentum=0.9, weight_decay=1e-4, fused=True)
    return Way(WholeStep(method, teacher, student, optimizer, graph=graph(like.device.type)), student)


def autocast(device: str, precision: torch.dtype | None) -> AbstractContextManager:
    return nullcontext() if precision is None else torch.autocast(device, precision)
