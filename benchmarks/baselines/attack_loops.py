"""Whole attacks as people write them: what BoundaryAttack and PGD are measured against.

The boundary loops follow the description of the public BSS code (Heo et al., AAAI 2019), with what costs it time and
without what crashes it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast.attacks import Status
from benchmarks.baselines import adversarial_library, there

TORCHATTACKS, ADV_LIB = "torchattacks", "adversarial-library"


class LoopSamples(NamedTuple):
    """What a boundary loop returns: images [M, ...], the logits on them [M, K], codes of :class:`Status` [M]."""

    images: Tensor
    logits: Tensor
    status: Tensor


def bss_loop(
    network: nn.Module,
    images: Tensor,
    base: Tensor,
    target: Tensor,
    *,
    steps: int = 10,
    step_size: float = 0.3,
    lower: float = -2.5,
    upper: float = 2.5,
) -> LoopSamples:
    """The public loop. It computes the gradients of all weights and leaves them there, runs all its steps with the
    whole batch although most samples are finished, and ends with a backward pass that nothing needs."""
    x = images.clone()
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        logits = network(x)
        gap = _at(logits, base) - _at(logits, target)
        (-gap).sum().backward()
        moving = logits.argmax(1) == base
        if step < steps:
            x = _step(x, x.grad, gap, moving, step_size, lower, upper)
    return LoopSamples(x.detach(), logits.detach(), status(logits, base, target))


def bss_loop_lean(
    network: nn.Module,
    images: Tensor,
    base: Tensor,
    target: Tensor,
    *,
    steps: int = 10,
    step_size: float = 0.3,
    lower: float = -2.5,
    upper: float = 2.5,
) -> LoopSamples:
    """The same by a careful user: gradients of the images alone, and an end when every sample is finished.

    Give it a network whose weights want no gradient (:func:`quiet`).
    """
    x = images.clone()
    for step in range(steps + 1):
        x = x.detach().requires_grad_(step < steps)
        logits = network(x)
        moving = logits.argmax(1) == base
        if step == steps or not moving.any():
            break
        gap = _at(logits, base) - _at(logits, target)
        (grad,) = torch.autograd.grad(-gap.sum(), x)
        x = _step(x, grad, gap, moving, step_size, lower, upper)
    return LoopSamples(x.detach(), logits.detach(), status(logits, base, target))


def pgd_loop(
    network: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int = 10
) -> Tensor:
    """PGD (linf, no random start) on images in [0, 1], as every attack library writes it."""
    x = images.clone()
    for _ in range(steps):
        x.requires_grad_()
        loss = F.cross_entropy(network(x), labels)
        (grad,) = torch.autograd.grad(loss, x)
        x = x.detach() + step_size * grad.sign()
        x = (images + (x - images).clamp(-eps, eps)).clamp(0.0, 1.0)
    return x


def pgd_libraries(network: nn.Module, *, eps: float, step_size: float, steps: int) -> dict[str, Callable]:
    """The same by the libraries that are there: functions of (images, labels), which import at their first call."""
    options = {"eps": eps, "step_size": step_size, "steps": steps}
    found = {TORCHATTACKS: _torchattacks, ADV_LIB: _adv_lib}
    return {name: partial(attack, network, **options) for name, attack in found.items() if there(name)}


def _torchattacks(
    network: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int
) -> Tensor:
    import torchattacks

    return torchattacks.PGD(network, eps=eps, alpha=step_size, steps=steps, random_start=False)(images, labels)


def _adv_lib(network: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int) -> Tensor:
    pgd_linf = adversarial_library.pgd_linf()
    return pgd_linf(network, images, labels, eps, steps=steps, random_init=False, absolute_step_size=step_size)


def quiet(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose weights want no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def _step(x: Tensor, grad: Tensor, gap: Tensor, moving: Tensor, step_size: float, lower: float, upper: float) -> Tensor:
    with torch.no_grad():
        unit = grad / _column(grad.flatten(1).norm(dim=1), grad)
        moved = (x + step_size * (_column(gap, x) + 1e-4) * unit).clamp(lower, upper)
        return torch.where(_column(moving, x), moved, x)


def status(logits: Tensor, base: Tensor, target: Tensor) -> Tensor:
    prediction = logits.argmax(1)
    landed = torch.where(prediction == target, Status.CROSSED, Status.THIRD)
    return torch.where(prediction == base, Status.UNCROSSED, landed)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _column(values: Tensor, images: Tensor) -> Tensor:
    return values.view(-1, *[1] * (images.dim() - 1))
