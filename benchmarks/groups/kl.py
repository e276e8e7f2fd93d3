"""The KL family: divergences of logits [B, K], forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import amkd_fast as af
from benchmarks.baselines import kl as baselines
from benchmarks.contest import Contestant
from benchmarks.group import Goal, Group
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
        dkd_loss(256, 100, fp32, 3.0),
        *(dkd_loss(*shape, fp32) for shape in ((128, 10), (256, 1000))),
        *(consistency(*shape, fp32) for shape in ((128, 10), (256, 100))),
        *(standardised(*shape, fp32) for shape in ((128, 10), (256, 100))),
    ]


def kl_div(
    rows: int, classes: int, dtype: torch.dtype, speedup: float | None = None, divergence: str = "forward"
) -> Group:
    name = "kl_div" if divergence == "forward" else f"kl_div {divergence}"
    ours = partial(af.kl_div, temperature=TEMPERATURE, divergence=divergence)
    return _group(name, (rows, classes), dtype, ours, lambda: baselines.kl(TEMPERATURE, divergence), speedup)


def soft_cross_entropy(rows: int, classes: int, dtype: torch.dtype) -> Group:
    ours = partial(af.soft_cross_entropy, temperature=TEMPERATURE)
    rivals = partial(baselines.soft_cross_entropy, TEMPERATURE)
    return _group("soft_cross_entropy", (rows, classes), dtype, ours, rivals)


def distillation_loss(rows: int, classes: int, dtype: torch.dtype, speedup: float | None = None) -> Group:
    """One exponential more: of the student's logits at temperature 1."""

    def ours(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        weights = {"ce_weight": CE_WEIGHT, "kl_weight": KL_WEIGHT}
        return af.distillation_loss(student, teacher, labels, temperature=TEMPERATURE, **weights).total

    rivals = partial(baselines.distillation, TEMPERATURE, CE_WEIGHT, KL_WEIGHT)
    return _group("distillation_loss", (rows, classes), dtype, ours, rivals, speedup, exponentials=3, labelled=True)


def dkd_loss(rows: int, classes: int, dtype: torch.dtype, speedup: float | None = None) -> Group:
    ours = partial(af.dkd_loss, temperature=TEMPERATURE)
    rivals = partial(baselines.decoupled, TEMPERATURE, 1.0, 8.0)
    return _group("dkd_loss", (rows, classes), dtype, ours, rivals, speedup, labelled=True)


def standardised(rows: int, classes: int, dtype: torch.dtype) -> Group:
    ours = partial(af.standardised_kl_div, temperature=TEMPERATURE)
    rivals = partial(baselines.standardised, TEMPERATURE)
    return _group("standardised_kl_div", (rows, classes), dtype, ours, rivals)


def consistency(rows: int, classes: int, dtype: torch.dtype) -> Group:
    """The logits of both views lie in one tensor, as they come from a network that gets both in one batch."""

    def ours(students: Tensor, teachers: Tensor) -> Tensor:
        (student, augmented), (teacher, augmented_teacher) = students.unbind(), teachers.unbind()
        return af.consistency_kl(student, teacher, augmented, augmented_teacher, TEMPERATURE).total

    rivals = partial(baselines.consistency, TEMPERATURE)
    return _group("consistency_kl", (2, rows, classes), dtype, ours, rivals)


def _group(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    ours: Callable[..., Tensor],
    rivals: Callable[[], list[Contestant]],
    speedup: float | None = None,
    exponentials: int = 2,  # a pair of logits and direction
    labelled: bool = False,
) -> Group:
    rows, classes = shape[-2:]

    def inputs(device: str) -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(0)
        drawn = (torch.randn(shape, generator=draws).mul_(3.0).to(device, dtype) for _ in range(2))
        student, teacher = drawn
        labels = (torch.randint(classes, (rows,), generator=draws).to(device),) if labelled else ()
        return student.requires_grad_(), teacher, *labels

    count = torch.Size(shape).numel()
    size = count * dtype.itemsize
    # Student and teacher are read in each direction, as a backward pass that comes later cannot have kept them in a
    # cache; it also writes the gradient.
    work = {
        "forward": Work(2 * size, exponentials * count),
        "backward": Work(3 * size, exponentials * count),
        "both": Work(5 * size, 2 * exponentials * count, launches=2),
    }
    goals = () if speedup is None else (Goal("speed-up", speedup),)
    return Group("kl", name, {"B": rows, "K": classes}, dtype, inputs, ours, rivals, work, goals=goals)
