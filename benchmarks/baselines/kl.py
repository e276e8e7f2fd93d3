"""Divergences and distillation losses in PyTorch's own functions, and Liger-Kernel's on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines import there
from benchmarks.contest import Contestant

T = 4.0
CE_WEIGHT, KL_WEIGHT = 0.1, 0.9
TARGET_WEIGHT, OTHER_WEIGHT = 1.0, 8.0

Views = Tensor | tuple[Tensor, Tensor]  # logits of two views [2, B, K], or one after the other


def log_target(student: Tensor, teacher: Tensor) -> Tensor:
    """``F.kl_div`` with T², from the teacher's log-probabilities."""
    log_q, log_p = F.log_softmax(student / T, -1), F.log_softmax(teacher / T, -1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * T**2


def softmax_target(student: Tensor, teacher: Tensor) -> Tensor:
    """The same from its probabilities."""
    log_q, p = F.log_softmax(student / T, -1), F.softmax(teacher / T, -1)
    return F.kl_div(log_q, p, reduction="batchmean") * T**2


def reverse(student: Tensor, teacher: Tensor) -> Tensor:
    return log_target(teacher, student)


def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
    log_q, log_p = F.log_softmax(student / T, -1), F.log_softmax(teacher / T, -1)
    log_m = torch.logaddexp(log_q, log_p) - math.log(2.0)
    halves = [F.kl_div(log_m, log, reduction="batchmean", log_target=True) for log in (log_p, log_q)]
    return 0.5 * (halves[0] + halves[1]) * T**2


def soft_cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return F.cross_entropy(student / T, F.softmax(teacher / T, -1))


def distillation(divergence: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """``F.cross_entropy`` and a divergence, weighted."""

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return CE_WEIGHT * F.cross_entropy(student, labels) + KL_WEIGHT * divergence(student, teacher)

    return loss


def decoupled(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Masked sums of probabilities for the target against the rest, and −1000 for the target among the others."""
    chosen = torch.zeros_like(student).scatter_(1, labels.unsqueeze(1), 1.0).bool()

    def binary(probabilities: Tensor) -> Tensor:
        return torch.cat([(probabilities * mask).sum(1, keepdim=True) for mask in (chosen, ~chosen)], 1)

    q, p = F.softmax(student / T, 1), F.softmax(teacher / T, 1)
    target = F.kl_div(binary(q).log(), binary(p), reduction="batchmean")
    log_q = F.log_softmax(student / T - 1000.0 * chosen, 1)
    others = F.kl_div(log_q, F.softmax(teacher / T - 1000.0 * chosen, 1), reduction="batchmean")
    return (TARGET_WEIGHT * target + OTHER_WEIGHT * others) * T**2


def standardised(student: Tensor, teacher: Tensor) -> Tensor:
    """Rows less their mean over their sample deviation, as public code does it, then ``F.kl_div``."""

    def standard(logits: Tensor) -> Tensor:
        return (logits - logits.mean(-1, keepdim=True)) / logits.std(-1, keepdim=True)

    return softmax_target(standard(student), standard(teacher))


def views_apart(loss: Callable[[Views, Views], Tensor]) -> Callable[..., Tensor]:
    """A loss of both views as one of four tensors."""

    def call(student: Tensor, teacher: Tensor, augmented_student: Tensor, augmented_teacher: Tensor) -> Tensor:
        return loss((student, augmented_student), (teacher, augmented_teacher))

    return call


def each_view(students: Views, teachers: Views) -> Tensor:
    """``F.kl_div`` of either view, rows of the second weighted by ``F.cosine_similarity``."""

    def divergence(view: int, reduction: str) -> Tensor:
        log_q, p = F.log_softmax(students[view] / T, -1), F.softmax(teachers[view] / T, -1)
        return F.kl_div(log_q, p, reduction=reduction)

    weight = F.cosine_similarity(teachers[0], teachers[1]) + 1.0
    augmented = (weight * divergence(1, "none").sum(-1)).mean()
    return T**2 * 0.5 * (divergence(0, "batchmean") + augmented)


def both_views(students: Views, teachers: Views) -> Tensor:
    """The same in one call."""
    students, teachers = (views if isinstance(views, Tensor) else torch.stack(views) for views in (students, teachers))
    log_q, p = F.log_softmax(students / T, -1), F.softmax(teachers / T, -1)
    weight = F.cosine_similarity(teachers[0], teachers[1]) + 1.0
    clean, augmented = F.kl_div(log_q, p, reduction="none").sum(-1).unbind()
    return T**2 * 0.5 * (clean.mean() + (weight * augmented).mean())


def liger() -> list[Contestant]:
    """It takes log-probabilities, which PyTorch computes for it."""
    if not (torch.cuda.is_available() and there("liger-kernel")):
        return []
    from liger_kernel.transformers import LigerKLDIVLoss

    divergence = LigerKLDIVLoss(reduction="batchmean", log_target=True)

    def call(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = (F.log_softmax(logits / T, -1, dtype=torch.float32) for logits in (student, teacher))
        return divergence(log_q, log_p) * T**2

    return [Contestant("liger-kernel", call)]
