"""Whole attacks as people write them: what BoundaryAttack and PGD are measured against.

The boundary loops follow the description of the public BSS code (Heo et al., AAAI 2019), with what costs it time and
without what crashes it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast.attacks import Status
from benchmarks.baselines import attack as steps

BSS_STEPS, BSS_STEP_SIZE, LOWER, UPPER = 10, 0.3, -2.5, 2.5  # of the public code
EPS, STEP_SIZE, STEPS = steps.EPS, steps.STEP_SIZE, 10  # of PGD
RADII = {"linf": (EPS, STEP_SIZE), "l2": (steps.L2_EPS, steps.L2_STEP)}


class LoopSamples(NamedTuple):
    """What a boundary loop returns: images [M, ...], the logits on them [M, K], codes of :class:`Status` [M]."""

    images: Tensor
    logits: Tensor
    status: Tensor


def bss_loop(network: nn.Module, images: Tensor, base: Tensor, target: Tensor) -> LoopSamples:
    """The public loop. It computes the gradients of all weights and leaves them there, runs all its steps with the
    whole batch although most samples are finished, and ends with a backward pass that nothing needs."""
    x = images.clone()
    for step in range(BSS_STEPS + 1):
        x = x.detach().requires_grad_()
        logits = network(x)
        gap = _at(logits, base) - _at(logits, target)
        (-gap).sum().backward()
        if step < BSS_STEPS:
            x = _step(x, x.grad, gap, logits.argmax(1) == base)
    return LoopSamples(x.detach(), logits.detach(), _status(logits, base, target))


def bss_loop_lean(network: nn.Module, images: Tensor, base: Tensor, target: Tensor) -> LoopSamples:
    """The same by a careful user: gradients of the images alone, and an end when every sample is finished.

    Give it a network whose weights want no gradient.
    """
    x = images.clone()
    for step in range(BSS_STEPS + 1):
        x = x.detach().requires_grad_(step < BSS_STEPS)
        logits = network(x)
        moving = logits.argmax(1) == base
        if step == BSS_STEPS or not moving.any():
            break
        gap = _at(logits, base) - _at(logits, target)
        (grad,) = torch.autograd.grad(-gap.sum(), x)
        x = _step(x, grad, gap, moving)
    return LoopSamples(x.detach(), logits.detach(), _status(logits, base, target))


def loud(network: nn.Module) -> nn.Module:
    """A copy as the public trainer leaves it: its weights want gradients."""
    return copy.deepcopy(network).eval().requires_grad_()


def pgd_loop(network: nn.Module, images: Tensor, labels: Tensor, step: Callable = steps.linf_step) -> Tensor:
    """PGD (no random start) on images in [0, 1], as every attack library writes it."""
    x = images.clone()
    for _ in range(STEPS):
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(network(x), labels)
        (grad,) = torch.autograd.grad(loss, x)
        x = step(x.detach(), grad, images)
    return x


pgd_l2_loop = partial(pgd_loop, step=steps.l2_step)


def torchattacks_pgd(network: nn.Module, images: Tensor, labels: Tensor, norm: str = "linf") -> Tensor:
    import torchattacks

    (eps, size), attack = RADII[norm], {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    return attack(network, eps=eps, alpha=size, steps=STEPS, random_start=False)(images, labels)


torchattacks_pgd_l2 = partial(torchattacks_pgd, norm="l2")


def adv_lib_pgd(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    options = {"steps": STEPS, "random_init": False, "absolute_step_size": STEP_SIZE}
    return _adv_lib()(network, images, labels, EPS, **options)


@cache
def _adv_lib() -> Callable:
    """``adv_lib.attacks.pgd_linf``, without two libraries that its package imports and its PGD does not use.

    Where one is missing an empty module takes its name while adv_lib is being imported and goes afterwards, because
    other libraries look for torchvision, and would find a hull.
    """
    absent = [name for name in ("torchvision", "visdom") if name not in sys.modules and find_spec(name) is None]
    for name in absent:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].models = ModuleType(f"{name}.models")
    try:
        from adv_lib.attacks import pgd_linf
    finally:
        for name in absent:
            del sys.modules[name]
    return pgd_linf


@torch.no_grad()
def _step(x: Tensor, grad: Tensor, gap: Tensor, moving: Tensor) -> Tensor:
    def column(values: Tensor) -> Tensor:
        return values.view(-1, *[1] * (x.dim() - 1))

    unit = grad / column(grad.flatten(1).norm(dim=1))
    moved = (x + BSS_STEP_SIZE * (column(gap) + 1e-4) * unit).clamp(LOWER, UPPER)
    return torch.where(column(moving), moved, x)


def _status(logits: Tensor, base: Tensor, target: Tensor) -> Tensor:
    prediction = logits.argmax(1)
    landed = torch.where(prediction == target, Status.CROSSED, Status.THIRD)
    return torch.where(prediction == base, Status.UNCROSSED, landed)


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]
