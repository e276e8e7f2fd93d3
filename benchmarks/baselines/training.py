"""A training step as the public trainers write it, and the passes through the networks that none can avoid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast.methods import Batch, Method, StepContext
from benchmarks.baselines.attack_loops import bss_loop
from benchmarks.outside import network_passes

TEMPERATURE, ALPHA, BETA, GAMMA, MARGIN = 3.0, 4.0, 2.0, 0.3, 1.0


def soft_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(student / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1), reduction="batchmean")


def eager_loss(name: str, batch: Batch, teacher: nn.Module, student: nn.Module, select: Callable) -> Tensor:
    """KD, BSS or AMKD as public trainers write them, triplets by a matrix of distances; ``select`` finds the bases."""
    with torch.no_grad():
        taught = teacher(batch.images)
    logits = student(batch.images)
    total = F.cross_entropy(logits, batch.labels) + ALPHA * soft_kl(logits, taught)
    if name == "KD":
        return total
    found = select(logits.detach(), taught, batch.labels)
    source, base, target = (column[found.valid] for column in (found.index, found.base, found.target))
    images = bss_loop(teacher, batch.images[source], base, target).images
    with torch.no_grad():
        aimed = teacher(images)
    attacked = student(images)
    extra = soft_kl(attacked, aimed)
    if name.startswith("AMKD"):
        positive = (attacked - logits[source]).norm(dim=1)
        other = (batch.labels != base[:, None]) & (batch.labels != target[:, None])
        negative = torch.cdist(attacked, logits).masked_fill(~other, torch.inf).amin(1)
        extra = extra + GAMMA * F.relu(positive - negative + MARGIN).mean()
    return total + BETA * extra


def bare_passes(
    method: Method, batch: Batch, teacher: nn.Module, student: nn.Module, now: StepContext
) -> Callable[[], Tensor]:
    """The passes through the networks that a step of the method makes, on the same images, and nothing else.

    They are the folded teacher's, and those on the attack's shrinking batches. Returns the student's clean logits.
    """
    passes = []

    def record(function: Callable, arguments: tuple, options: dict) -> Any:
        # The attack works on its images in place.
        own = (part.detach().clone() if isinstance(part, Tensor) else part for part in arguments)
        passes.append((function, tuple(own), options))
        return function(*arguments, **options)

    method(batch, teacher, student, now)  # prepares the view of the teacher
    seen = []
    hook = student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    with network_passes(record):
        method(batch, teacher, student, now)
    hook.remove()
    view = method.view_of(teacher)

    def run() -> Tensor:
        with torch.no_grad():
            view(batch.images)
        logits = leaf = None
        for function, arguments, options in passes:
            if "grad" in options:
                logits, leaf = function(*arguments, **options)
            else:
                function(logits, leaf, arguments[2])
        for parameter in student.parameters():
            parameter.grad = None
        outputs = [student(images) for images in seen]
        torch.autograd.backward(outputs, [torch.full_like(output, 1e-3) for output in outputs])
        return outputs[0].detach()

    return run
