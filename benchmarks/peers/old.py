"""What people write today, and torch.compile of it: the contestants that ours are measured against.

Each computes what its amkd_fast function computes with the arguments of cases.py, and no more: no masks, no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import attack_rivals
from benchmarks.contest import Contestant

METRIC_LEARNING = "pytorch-metric-learning"


def kl(temperature: float) -> list[Contestant]:
    """``F.kl_div`` with T², from log-probabilities and from probabilities of the teacher."""

    def log_target(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, log_p = F.log_softmax(student / temperature, -1), F.log_softmax(teacher / temperature, -1)
        return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2

    def softmax_target(student: Tensor, teacher: Tensor) -> Tensor:
        log_q, p = F.log_softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
        return F.kl_div(log_q, p, reduction="batchmean") * temperature**2

    return [*_both("log target", log_target), *_both("softmax target", softmax_target)]


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

    return [*_both("log target", log_target), *_both("softmax target", softmax_target)]


def pgd_step(step_size: float, eps: float, lower: float, upper: float) -> list[Contestant]:
    """One step of PGD (linf) as every attack library writes it."""

    def step(x: Tensor, grad: Tensor, clean: Tensor) -> Tensor:
        moved = x + step_size * grad.sign()
        return (clean + (moved - clean).clamp(-eps, eps)).clamp(lower, upper)

    return _both("linf step", step)


def boundary_step(step_size: float, lower: float, upper: float) -> list[Contestant]:
    """One step to the boundary of two classes (Heo et al. 2019) without a rule for zero gradients."""

    def step(x: Tensor, grad: Tensor, gap: Tensor) -> Tensor:
        unit = grad / grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return (x + step_size * (gap.view(-1, 1, 1, 1) + 1e-4) * unit).clamp(lower, upper)

    return _both("boundary step", step)


def boundary_objective() -> list[Contestant]:
    """Value, gradient in the logits, prediction and active flag of f_k − f_b: by autograd, and written down."""

    def autograd(logits: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        leaf = logits.detach().requires_grad_()
        value = (leaf.gather(1, target[:, None]) - leaf.gather(1, base[:, None]))[:, 0]
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        prediction = logits.argmax(1)
        return value.detach(), grad, prediction, prediction == base

    def closed(logits: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        value = (logits.gather(1, target[:, None]) - logits.gather(1, base[:, None]))[:, 0]
        grad = torch.zeros_like(logits).scatter_(1, target[:, None], 1.0).scatter_(1, base[:, None], -1.0)
        prediction = logits.argmax(1)
        return value, grad, prediction, prediction == base

    return [Contestant("eager autograd", autograd), *_both("objective", closed)]


def missing() -> dict[str, str]:
    """Libraries that belong into the comparison and are not in it, with the reason."""
    reason = "its kernels need a GPU: not part of the CPU groups"
    found = {"liger-kernel": reason if find_spec("liger_kernel") else f"not installed; {reason}"}
    if not find_spec("pytorch_metric_learning"):
        found[METRIC_LEARNING] = "not installed"
    return {**found, **attack_rivals.missing()}


def _both(name: str, call: Callable[..., Tensor]) -> list[Contestant]:
    # One compilation a shape: dynamic shapes would only make the compiled form slower.
    compiled = torch.compile(call, fullgraph=True, dynamic=False)
    return [Contestant(f"eager {name}", call), Contestant(f"compile {name}", compiled)]
