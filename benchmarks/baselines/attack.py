"""Adversarial steps, objectives and the choice of boundary bases in PyTorch's own functions, one call each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from amkd_fast.ops.attack import BoundaryBases

LOWER, UPPER = 0.0, 1.0
EPS, STEP_SIZE = 8 / 255, 2 / 255
L2_EPS, L2_STEP, L1_EPS, L1_STEP, TOP = 0.5, 0.1, 12.0, 1.0, 0.01
BOUNDARY_STEP, NEWTON_STEP = 0.3, 1.02
PUBLIC_BASES = "public bases"


def linf_step(x: Tensor, grad: Tensor, clean: Tensor) -> Tensor:
    """PGD's as every attack library writes it."""
    moved = x + STEP_SIZE * grad.sign()
    return (clean + (moved - clean).clamp(-EPS, EPS)).clamp(LOWER, UPPER)


def l2_step(x: Tensor, grad: Tensor, clean: Tensor) -> Tensor:
    """Along the normalised gradient, then back into the ball, without a rule for zero gradients."""
    away = x + L2_STEP * grad / _column(grad.flatten(1).norm(dim=1)) - clean
    size = _column(away.flatten(1).norm(dim=1))
    return (clean + away * (L2_EPS / size.clamp(min=L2_EPS))).clamp(LOWER, UPPER)


def l1_step(x: Tensor, grad: Tensor, clean: Tensor) -> Tensor:
    """Along the signs of the largest entries, a share of TOP; back into the ball by a sort (Duchi et al. 2008)."""
    size = grad.flatten(1).abs()  # [B, N]
    count = math.ceil(TOP * size.shape[1])
    sparse = grad.flatten(1).sign() * (size >= size.topk(count).values[:, -1:])
    away = (x - clean).flatten(1) + L1_STEP * sparse / sparse.abs().sum(1, keepdim=True)
    falling = away.abs().sort(1, descending=True).values
    excess = falling.cumsum(1) - L1_EPS
    places = torch.arange(1, away.shape[1] + 1, device=away.device)
    last = (falling * places > excess).sum(1, keepdim=True)  # entries that stay above the threshold
    threshold = (excess.gather(1, last - 1) / last).clamp(min=0.0)
    inside = away.sign() * (away.abs() - threshold).clamp(min=0.0)
    return (clean + inside.view_as(clean)).clamp(LOWER, UPPER)


def boundary_step(x: Tensor, grad: Tensor, gap: Tensor) -> Tensor:
    """To the boundary of two classes (Heo et al. 2019), without a rule for zero gradients."""
    unit = grad / _column(grad.flatten(1).norm(dim=1))
    return (x + BOUNDARY_STEP * (_column(gap) + 1e-4) * unit).clamp(LOWER, UPPER)


def newton_step(x: Tensor, grad: Tensor, gap: Tensor) -> Tensor:
    """Onto the linearised boundary, as DeepFool steps, along the coordinates that no bound blocks."""
    blocked = ((x <= LOWER) & (grad < 0)) | ((x >= UPPER) & (grad > 0))
    free = grad.masked_fill(blocked, 0.0)
    square = _column(free.flatten(1).square().sum(1))
    return (x + NEWTON_STEP * (_column(gap) + 1e-4) * free / square).clamp(LOWER, UPPER)


def svgd_step(x: Tensor, grad: Tensor, clean: Tensor) -> Tensor:
    """Stein variational ascent as public code writes it, an image at a time in a batched product."""
    n = x.shape[1]
    flat, g = x.flatten(2), grad.flatten(2)  # [B, n, D]
    square = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square()
    i, j = torch.triu_indices(n, n, 1, device=x.device)
    h = square[:, i, j].median(1).values[:, None, None] / math.log(n)
    kernel = torch.exp(-square / h)
    push = 2.0 / h * (flat * kernel.sum(2, keepdim=True) - torch.bmm(kernel, flat))
    phi = (torch.bmm(kernel, g) + push) / n
    moved = x + STEP_SIZE * phi.view_as(x).sign()
    near = clean[:, None]
    return (near + (moved - near).clamp(-EPS, EPS)).clamp(LOWER, UPPER)


def gap(logits: Tensor, base: Tensor, target: Tensor) -> Tensor:
    return (logits.gather(1, target[:, None]) - logits.gather(1, base[:, None]))[:, 0]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def by_autograd(objective: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Value, gradient in the logits, prediction and active flag of an objective."""

    def call(logits: Tensor, base: Tensor, *target: Tensor) -> tuple[Tensor, ...]:
        leaf = logits.detach().requires_grad_()
        value = objective(leaf, base, *target)
        (grad,) = torch.autograd.grad(value.sum(), leaf)
        prediction = logits.argmax(1)
        return value.detach(), grad, prediction, prediction == base

    return call


def closed_gap(logits: Tensor, base: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """The same of f_k − f_b, written down."""
    grad = torch.zeros_like(logits).scatter_(1, target[:, None], 1.0).scatter_(1, base[:, None], -1.0)
    prediction = logits.argmax(1)
    return gap(logits, base, target), grad, prediction, prediction == base


def closed_cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Of the cross-entropy, which an attack climbs away from the labels."""
    log_p = F.log_softmax(logits, 1)
    prediction = logits.argmax(1)
    value = -log_p.gather(1, labels[:, None])[:, 0]
    return value, log_p.exp() - F.one_hot(labels, logits.shape[1]), prediction, prediction == labels


def public_bases(limit: int, seed: int = 0) -> Callable[[Tensor, Tensor, Tensor], BoundaryBases]:
    """Selection of base samples and draw of their targets, one sample after the other in the draw.

    The result has as many rows as samples were found, and the numbers of ``torch.multinomial``.
    """
    draws: dict[torch.device, torch.Generator] = {}

    def select(student: Tensor, teacher: Tensor, labels: Tensor) -> BoundaryBases:
        generator = draws.setdefault(labels.device, torch.Generator(labels.device).manual_seed(seed))
        p_student, p_teacher = student.softmax(1), teacher.softmax(1)
        index = ((teacher.argmax(1) == labels) & (student.argmax(1) == labels)).nonzero()[:, 0]
        difference = (p_teacher[index] - p_student[index]).square()
        difference.scatter_(1, labels[index, None], 0.0)
        _, order = difference.sum(1).sort(descending=True)
        index = index[order[:limit]]
        target = []
        for row, top in zip(index.tolist(), labels[index].tolist(), strict=True):
            p = p_teacher[row].clone()
            rest = 1.0 - p[top].item()
            if rest > 0.0:
                p[top] = 0.0
                target.append(torch.multinomial(p / rest, 1, generator=generator).item())
            else:
                target.append(teacher[row].topk(2).indices[1].item())
        valid = torch.ones_like(index, dtype=torch.bool)
        return BoundaryBases(index, labels[index], torch.tensor(target, device=index.device), valid)

    return select


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
