"""The KL family: divergences of logits [B, K], forward and backward."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import amkd_fast as af
from benchmarks.group import Group, Target
from benchmarks.peers import kl as peers
from benchmarks.roofline import Work

TEMPERATURE = 4.0
CE_WEIGHT, KL_WEIGHT = 0.1, 0.9


def groups() -> list[Group]:
    fp32, bf16 = torch.float32, torch.bfloat16
    return [
        kl_div(128, 10, fp32, 2.3),
        kl_div(128, 100, fp32, 4.0),
        kl_div(256, 1000, fp32, 3.5),
        kl_div(256, 1000, bf16, 3.0),
        kl_div(512, 32000, fp32, 3.0),
        kl_div(512, 32000, bf16),
        kl_div(256, 1000, fp32, divergence="reverse"),
        kl_div(256, 1000, fp32, divergence="js"),
        soft_cross_entropy(256, 1000, fp32),
        distillation_loss(128, 100, fp32, 3.0),
        distillation_loss(256, 1000, fp32),
        distillation_loss(256, 1000, bf16),
        dkd_loss(256, 100, fp32, Target(7, "speed-up", 3.0)),
        dkd_loss(128, 10, fp32),
        dkd_loss(256, 1000, fp32),
        consistency(128, 10, fp32),
        consistency(256, 100, fp32),
        standardised(128, 10, fp32),
        standardised(256, 100, fp32),
    ]


def kl_div(
    rows: int, classes: int, dtype: torch.dtype, speedup: float | None = None, divergence: str = "forward"
) -> Group:
    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        return af.kl_div(student, teacher, TEMPERATURE, divergence=divergence)

    name = "kl_div" if divergence == "forward" else f"kl_div {divergence}"
    return _group(name, rows, classes, dtype, ours, lambda: peers.kl(TEMPERATURE, divergence), 2, speedup)


def soft_cross_entropy(rows: int, classes: int, dtype: torch.dtype) -> Group:
    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        return af.soft_cross_entropy(student, teacher, TEMPERATURE)

    return _group(
        "soft_cross_entropy", rows, classes, dtype, ours, lambda: peers.soft_cross_entropy(TEMPERATURE), 2, None
    )


def distillation_loss(rows: int, classes: int, dtype: torch.dtype, speedup: float | None = None) -> Group:
    weights = {"ce_weight": CE_WEIGHT, "kl_weight": KL_WEIGHT}

    def ours(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return af.distillation_loss(student, teacher, labels, temperature=TEMPERATURE, **weights).total

    # One exponential more: of the student's logits at temperature 1.
    return _group(
        "distillation_loss",
        rows,
        classes,
        dtype,
        ours,
        lambda: peers.distillation(TEMPERATURE, CE_WEIGHT, KL_WEIGHT),
        3,
        speedup,
        labelled=True,
    )


def dkd_loss(rows: int, classes: int, dtype: torch.dtype, *targets: Target) -> Group:
    def ours(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return af.dkd_loss(student, teacher, labels, TEMPERATURE)

    group = _group(
        "dkd_loss", rows, classes, dtype, ours, lambda: peers.decoupled(TEMPERATURE, 1.0, 8.0), 2, None, labelled=True
    )
    return replace(group, targets=targets)


def standardised(rows: int, classes: int, dtype: torch.dtype) -> Group:
    def ours(student: Tensor, teacher: Tensor) -> Tensor:
        return af.standardised_kl_div(student, teacher, TEMPERATURE)

    rivals = partial(peers.standardised, TEMPERATURE)
    return _group("standardised_kl_div", rows, classes, dtype, ours, rivals, 2, None)


def consistency(rows: int, classes: int, dtype: torch.dtype) -> Group:
    """The logits of both views lie in one tensor, as they come from a network that gets both in one batch."""

    def ours(students: Tensor, teachers: Tensor) -> Tensor:
        (student, augmented), (teacher, augmented_teacher) = students.unbind(), teachers.unbind()
        return af.consistency_kl(student, teacher, augmented, augmented_teacher, TEMPERATURE).total

    def inputs(device: str) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(0)
        drawn = (torch.randn(2, rows, classes, generator=draws).mul_(3.0).to(device, dtype) for _ in range(2))
        students, teachers = drawn
        return students.requires_grad_(), teachers

    size, count = 4 * rows * classes * dtype.itemsize, 4 * rows * classes
    # All four are read in each direction, and half as much is written.
    work = {
        "forward": Work(size, count),
        "backward": Work(3 * size // 2, count),
        "both": Work(5 * size // 2, 2 * count, launches=2),
    }
    rivals = partial(peers.consistency, TEMPERATURE)
    return Group("kl", "consistency_kl", {"B": rows, "K": classes}, dtype, inputs, ours, rivals, work)


def _group(name, rows, classes, dtype, ours, rivals, exponentials, speedup, labelled=False) -> Group:
    """``exponentials`` a logit and direction."""

    def inputs(device: str) -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(0)
        drawn = (torch.randn(rows, classes, generator=draws).mul_(3.0).to(device, dtype) for _ in range(2))
        student, teacher = drawn
        labels = (torch.randint(classes, (rows,), generator=draws).to(device),) if labelled else ()
        return student.requires_grad_(), teacher, *labels

    size = rows * classes * dtype.itemsize
    # Student and teacher are read in each direction, as a backward pass that comes later cannot have kept them in a
    # cache; it also writes the gradient.
    work = {
        "forward": Work(2 * size, exponentials * rows * classes),
        "backward": Work(3 * size, exponentials * rows * classes),
        "both": Work(5 * size, 2 * exponentials * rows * classes, launches=2),
    }
    targets = () if speedup is None else (Target(2, "speed-up", speedup),)
    return Group("kl", name, {"B": rows, "K": classes}, dtype, inputs, ours, rivals, work, targets=targets)
