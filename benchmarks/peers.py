"""What people write today, and torch.compile of it: the contestants that ours are measured against.

Each computes what its amkd_fast function computes with the arguments of cases.py, and no more: no masks, no weights.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contest import Contestant


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


def batch_hard(margin: float) -> list[Contestant]:
    """Batch-hard triplets out of the whole distance matrix."""

    def cdist(rows: Tensor, labels: Tensor) -> Tensor:
        distance = torch.cdist(rows, rows)  # [N, N]
        same = labels[:, None] == labels
        itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        farthest = distance.masked_fill(~same | itself, -torch.inf).amax(1)
        nearest = distance.masked_fill(same, torch.inf).amin(1)
        return F.relu(farthest - nearest + margin).mean()

    return _both("cdist", cdist)


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


def missing() -> dict[str, str]:
    """Libraries that belong into the comparison and are not in it, with the reason."""
    later = {
        "liger-kernel": ("liger_kernel", "its kernels need a GPU: not part of the CPU groups"),
        "pytorch-metric-learning": ("pytorch_metric_learning", "joins with the fast triplet kernels"),
        "torchattacks": ("torchattacks", "joins with the fast attack kernels"),
    }
    return {
        name: reason if find_spec(module) else f"not installed; {reason}" for name, (module, reason) in later.items()
    }


def _both(name: str, call: Callable[..., Tensor]) -> list[Contestant]:
    # One compilation a shape: dynamic shapes would only make the compiled form slower.
    compiled = torch.compile(call, fullgraph=True, dynamic=False)
    return [Contestant(f"eager {name}", call), Contestant(f"compile {name}", compiled)]
