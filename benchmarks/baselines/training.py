"""A training step as the public trainers write it, and the passes through the networks that none can avoid."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast.attacks.frozen import FrozenModel
from amkd_fast.methods import Batch, Method, StepContext
from benchmarks.baselines.attack_loops import bss_loop
from benchmarks.outside import network_passes

BARE = "bare passes"
TEMPERATURE, ALPHA, BETA, GAMMA, MARGIN = 3.0, 4.0, 2.0, 0.1, 1.0


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
        positive = (aimed - attacked).norm(dim=1)
        other = (batch.labels != base[:, None]) & (batch.labels != target[:, None])
        negative = torch.cdist(aimed, logits).masked_fill(~other, torch.inf).amin(1)
        extra = extra + GAMMA * F.relu(positive - negative + MARGIN).mean()
    return total + BETA * extra


def bare_passes(
    method: Method, batch: Batch, teacher: nn.Module, student: nn.Module, now: StepContext
) -> Callable[[], Tensor]:
    """The passes through the networks that a step of the method makes, on the same images, and nothing else.

    They are the folded teacher's, and those on the attack's shrinking batches. Returns the student's first logits.
    """
    passes, seen, taught = [], [], []

    def heard(network: nn.Module, passed: list[Tensor]) -> Any:
        forward = network.forward

        def call(images: Tensor) -> Any:
            passed.append(images.detach().clone())
            return forward(images)

        return mock.patch.object(network, "forward", call)

    def view(self: FrozenModel, images: Tensor, called: Callable = FrozenModel.__call__) -> Any:
        taught.append((self, images.detach().clone()))
        return called(self, images)

    def record(function: Callable, arguments: tuple, options: dict) -> Any:
        # The attack works on its images in place.
        own = (part.detach().clone() if isinstance(part, Tensor) else part for part in arguments)
        passes.append((function, tuple(own), options))
        return function(*arguments, **options)

    method(batch, teacher, student, now)  # prepares the view of the teacher
    own = []  # what the teacher itself sees of a method that listens to its layers, and so has no view of it
    unfolded = heard(teacher, own) if method._seen is None else nullcontext()
    with network_passes(record), mock.patch.object(FrozenModel, "__call__", view), heard(student, seen), unfolded:
        method(batch, teacher, student, now)
    taught += [(teacher, images) for images in own]

    def run() -> Tensor:
        with torch.no_grad():
            for network, images in taught:
                network(images)
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
