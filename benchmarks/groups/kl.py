"""The KL family: divergences of logits [B, K], forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import amkd_fast as af
from benchmarks.baselines import kl as baselines
from benchmarks.baselines import large_vocabulary
from benchmarks.baselines.kl import CE_WEIGHT, KL_WEIGHT, T, distillation, log_target, softmax_target
from benchmarks.contest import Contestant
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work, both_ways

FP32, BF16 = torch.float32, torch.bfloat16
VOCABULARY = 10_000  # classes from which people take logits some rows at a time


def groups() -> list[Group]:
    return [
        loss("kl_div", 128, 10, FP32, 2.9),
        loss("kl_div", 128, 100, FP32, 2.8),
        loss("kl_div", 256, 1000, FP32, 3.5),
        loss("kl_div", 256, 1000, BF16, 3.0),
        loss("kl_div", 512, 32000, FP32, 2.5),
        loss("kl_div", 512, 32000, BF16),
        *(loss(name, 256, 1000, FP32) for name in ("kl_div reverse", "kl_div js", "soft_cross_entropy")),
        loss("distillation_loss", 128, 100, FP32, 3.0),
        *(loss("distillation_loss", 256, 1000, dtype) for dtype in (FP32, BF16)),
        loss("dkd_loss", 256, 100, FP32, 3.0),
        *(loss("dkd_loss", *shape, FP32) for shape in ((128, 10), (256, 1000))),
        loss("consistency_kl", 128, 10, FP32, 2.0),
        loss("consistency_kl", 256, 100, FP32),
        *(loss("consistency_kl one tensor", *shape, FP32) for shape in ((128, 10), (256, 100))),
        loss("standardised_kl_div", 128, 10, FP32, 3.0),
        loss("standardised_kl_div", 256, 100, FP32),
    ]


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    weights = {"ce_weight": CE_WEIGHT, "kl_weight": KL_WEIGHT}
    return af.distillation_loss(student, teacher, labels, temperature=temperature, **weights).total


class _MadeOf(torch.autograd.Function):
    """Logits that a layer has made of the leaf, for nothing."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, logits: Tensor) -> Tensor:
        return logits.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def inplace_backward() -> Callable[..., Tensor]:
    """kl_div that writes over logits. After the first call these are gradients, which cost as much to compute with."""
    logits: list[Tensor] = []

    def call(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        if not logits:
            logits.append(student.detach().clone())
        made = _MadeOf.apply(student, *logits)
        return af.kl_div(made, teacher, temperature, inplace_backward=True)

    return call


def consistency(student: Tensor, teacher: Tensor, *augmented: Tensor, temperature: float) -> Tensor:
    """Each view is a batch of its own to the networks, as the method CCD has it."""
    return af.consistency_kl(student, teacher, *augmented, temperature).total


def consistency_one_tensor(students: Tensor, teachers: Tensor, temperature: float) -> Tensor:
    """The logits of both views lie in one tensor, as they come from a network that gets both in one batch."""
    (student, augmented), (teacher, augmented_teacher) = students.unbind(), teachers.unbind()
    return consistency(student, teacher, augmented, augmented_teacher, temperature=temperature)


# Ours, which gets the temperature, and what computes the same in plain PyTorch.
LOSSES = {
    "kl_div": (af.kl_div, {"log target": log_target, "softmax target": softmax_target}),
    "kl_div reverse": (partial(af.kl_div, divergence="reverse"), {"kl_div": baselines.reverse}),
    "kl_div js": (partial(af.kl_div, divergence="js"), {"kl_div twice": baselines.jensen_shannon}),
    "soft_cross_entropy": (af.soft_cross_entropy, {"cross_entropy": baselines.soft_cross_entropy}),
    "distillation_loss": (
        distillation_loss,
        {"log target": distillation(log_target), "softmax target": distillation(softmax_target)},
    ),
    "dkd_loss": (af.dkd_loss, {"masks and -1000": baselines.decoupled}),
    "consistency_kl": (
        consistency,
        {
            "kl_div of each view": baselines.views_apart(baselines.each_view),
            "kl_div of both views": baselines.views_apart(baselines.both_views),
        },
    ),
    "consistency_kl one tensor": (
        consistency_one_tensor,
        {"kl_div of each view": baselines.each_view, "kl_div of both views": baselines.both_views},
    ),
    "standardised_kl_div": (af.standardised_kl_div, {"std and kl_div": baselines.standardised}),
}


def loss(name: str, rows: int, classes: int, dtype: torch.dtype, speedup: float | None = None) -> Group:
    """One of :data:`LOSSES`."""
    shape = (2, rows, classes) if name.startswith("consistency_kl") else (rows, classes)

    def draw() -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(shape, generator=draws).mul_(3.0).to(dtype) for _ in range(2))
        if name == "consistency_kl":
            clean, augmented = student.unbind()
            return (
                clean.clone().requires_grad_(),
                teacher[0].clone(),
                augmented.clone().requires_grad_(),
                teacher[1].clone(),
            )
        labels = torch.randint(classes, (rows,), generator=draws)
        return student.requires_grad_(), teacher, *([labels] if name in ("distillation_loss", "dkd_loss") else [])

    ours, rivals = LOSSES[name]
    count = torch.Size(shape).numel()
    size = count * dtype.itemsize
    exponentials = count * (3 if name == "distillation_loss" else 2)  # there also of the student at temperature 1
    work = both_ways(Work(2 * size, exponentials), Work(3 * size, exponentials))  # which also writes the gradient
    goals = () if speedup is None else (Goal("speed-up", speedup),)
    more: dict[str, Any] = {"others": baselines.liger} if name == "kl_div" else {}
    if name == "kl_div" and classes >= VOCABULARY:
        chunks = Contestant("eager gradient first in chunks", large_vocabulary.GradientFirst.apply)
        rivals = {**rivals, "recomputed in chunks": large_vocabulary.recomputed}
        more |= {"others": lambda: [chunks, *baselines.liger()], "yardsticks": (f"{chunks.name}: backward",)}
        if dtype == FP32:
            form = "inplace_backward"
            more["forms"] = {form: partial(inplace_backward(), temperature=T)}
            goals = (*goals, Goal("speed-up", 4.0, form=form))
    call, sizes = partial(ours, temperature=T), {"B": rows, "K": classes}
    return Group("kl", name, sizes, dtype, draw, call, rivals, work, goals=goals, **more)
