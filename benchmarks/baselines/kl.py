"""Divergences and distillation losses in PyTorch's own functions, and Liger-Kernel's on a GPU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines import there, written
from benchmarks.contest import Contestant


def kl(temperature: float, divergence: str) -> list[Contestant]:
    """``F.kl_div`` with T²; forward from log-probabilities and from probabilities of the teacher."""

    def log_target(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2

    def softmax_target(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
        return F.kl_div(log_q, p, reduction="batchmean") * temperature**2

    def jensen_shannon(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
        log_m = torch.logaddexp(log_q, log_p) - math.log(2.0)
        halves = [F.kl_div(log_m, log, reduction="batchmean", log_target=True) for log in (log_p, log_q)]
        return 0.5 * (halves[0] + halves[1]) * temperature**2

    if divergence == "reverse":
        return written("kl_div", lambda student, teacher: log_target(teacher, student))
    if divergence == "js":
        return written("kl_div twice", jensen_shannon)
    return [*written("log target", log_target), *written("softmax target", softmax_target), *_liger(temperature)]


def soft_cross_entropy(temperature: float) -> list[Contestant]:
    """``F.cross_entropy`` with probabilities as its target."""

    def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
        return F.cross_entropy(student / temperature, F.softmax(teacher / temperature, -1))

    return written("cross_entropy", cross_entropy)


def distillation(temperature: float, ce_weight: float, kl_weight: float) -> list[Contestant]:
    """``F.cross_entropy`` and ``F.kl_div``, weighted; the two forms of the latter."""

    def log_target(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_q, log_p = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
        divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
        return ce_weight * F.cross_entropy(student, labels) + kl_weight * divergence

    def softmax_target(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
        divergence = F.kl_div(log_q, p, reduction="batchmean") * temperature**2
        return ce_weight * F.cross_entropy(student, labels) + kl_weight * divergence

    return [*written("log target", log_target), *written("softmax target", softmax_target)]


def decoupled(temperature: float, target_weight: float, other_weight: float) -> list[Contestant]:
    """Masked sums of probabilities for the target against the rest, and −1000 for the target among the others."""

    def masks(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        chosen = torch.zeros_like(student).scatter_(1, labels.unsqueeze(1), 1.0).bool()

        def binary(probabilities: Tensor) -> Tensor:
            return torch.cat([(probabilities * mask).sum(1, keepdim=True) for mask in (chosen, ~chosen)], 1)

        q, p = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
        target = F.kl_div(binary(q).log(), binary(p), reduction="batchmean")
        log_q = F.log_softmax(student / temperature - 1000.0 * chosen, 1)
        others = F.kl_div(log_q, F.softmax(teacher / temperature - 1000.0 * chosen, 1), reduction="batchmean")
        return (target_weight * target + other_weight * others) * temperature**2

    return written("masks and -1000", masks)


def standardised(temperature: float) -> list[Contestant]:
    """Rows less their mean over their sample deviation, as public code does it, then ``F.kl_div``."""

    def standard(logits: Tensor) -> Tensor:
        return (logits - logits.mean(-1, keepdim=True)) / logits.std(-1, keepdim=True)

    def kl_div(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, p = F.log_softmax(standard(student) / temperature, -1), F.softmax(standard(teacher) / temperature, -1)
        return F.kl_div(log_q, p, reduction="batchmean") * temperature**2

    return written("std and kl_div", kl_div)


def consistency(temperature: float) -> list[Contestant]:
    """``F.kl_div`` of either view, rows of the second weighted by ``F.cosine_similarity``."""

    def each_view(students: Tensor, teachers: Tensor) -> Tensor:
        def divergence(view: int, reduction: str) -> Tensor:
            log_q, p = F.log_softmax(students[view] / temperature, -1), F.softmax(teachers[view] / temperature, -1)
            return F.kl_div(log_q, p, reduction=reduction)

        weight = F.cosine_similarity(teachers[0], teachers[1]) + 1.0
        augmented = (weight * divergence(1, "none").sum(-1)).mean()
        return temperature**2 * 0.5 * (divergence(0, "batchmean") + augmented)

    def both_views(students: Tensor, teachers: Tensor) -> Tensor:
        log_q, p = F.log_softmax(students / temperature, -1), F.softmax(teachers / temperature, -1)
        weight = F.cosine_similarity(teachers[0], teachers[1]) + 1.0
        clean, augmented = F.kl_div(log_q, p, reduction="none").sum(-1).unbind()
        return temperature**2 * 0.5 * (clean.mean() + (weight * augmented).mean())

    return [*written("kl_div of each view", each_view), *written("kl_div of both views", both_views)]


def _liger(temperature: float) -> list[Contestant]:
    """It takes log-probabilities, which PyTorch computes for it."""
    if not (torch.cuda.is_available() and there("liger-kernel")):
        return []
    from liger_kernel.transformers import LigerKLDIVLoss

    divergence = LigerKLDIVLoss(reduction="batchmean", log_target=True)

    def liger(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = (F.log_softmax(logits / temperature, -1, dtype=torch.float32) for logits in (student, teacher))
        return divergence(log_q, log_p) * temperature**2

    return [Contestant("liger-kernel", liger)]
