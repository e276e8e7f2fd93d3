"""Our trainer with the published BSS settings, against a plain eager loop written from the formulas alone."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("lightning", reason="the extra `train` is not installed")

from amkd_fast import philox
from amkd_fast.distill import data as datasets
from amkd_fast.distill import experiment, networks
from amkd_fast.distill.data import Batches
from amkd_fast.distill.networks import Spec
from amkd_fast.distill.settings import Settings
from amkd_fast.distill.teacher import Teacher

SETTINGS = Settings(
    teacher_network="small-4-1",
    student_network="small-4-1",
    teacher_epochs=6,
    student_images=500,
    batch_size=50,
    epochs=5,  # 50 steps
    bounds="preset",
    fold=False,
    lr=0.05,
)
SEED = 3


def plain_loop(student, teacher, data, settings):
    """50 steps of BSS as published: nothing in it but PyTorch, and the draw that the specification prescribes."""
    optimizer = torch.optim.SGD(
        student.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    dtype, steps, step = next(student.parameters()).dtype, 50, 0
    batches = Batches(data.student, settings.batch_size, SEED, data.augment)
    for epoch in range(settings.epochs):
        batches.set_epoch(epoch)
        for images, labels, *_ in batches:
            images = images.to(dtype)
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            with torch.no_grad():
                taught = teacher(images)
            logits = student(images)
            alpha = 3 * (1 - epoch / settings.epochs) + 1
            beta = max(2 * (1 - 4 * epoch / (3 * settings.epochs)), 0)
            loss = F.cross_entropy(logits, labels) + alpha * soft_cross_entropy(logits, taught)
            if beta > 0:
                source, base, target = bases(logits.detach(), taught, labels, SEED * 1_000_003 + step)
                if len(source) >= 2:
                    attacked = attack(teacher, images[source], base, target)
                    with torch.no_grad():
                        aimed = teacher(attacked)
                    loss = loss + beta * soft_cross_entropy(student(attacked), aimed)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    assert step == steps
    return student


def soft_cross_entropy(logits, taught, temperature=3.0):
    return -(F.softmax(taught / temperature, 1) * F.log_softmax(logits / temperature, 1)).sum(1).mean()


def bases(logits, taught, labels, seed, limit=16):
    p, q = F.softmax(taught, 1), F.softmax(logits, 1)
    apart = (p - q).square().scatter(1, labels[:, None], 0.0).sum(1)
    eligible = (taught.argmax(1) == labels) & (logits.argmax(1) == labels)
    rows = sorted(eligible.nonzero()[:, 0].tolist(), key=lambda row: -apart[row].item())[:limit]
    source = torch.tensor(rows, dtype=torch.int64)
    chances = F.softmax(taught.double().scatter(1, labels[:, None], -torch.inf), 1).cumsum(1)
    draw = philox.uniform(seed, torch.arange(len(labels)), dtype=torch.float64)
    target = (chances <= (draw * chances[:, -1])[:, None]).sum(1)
    return source, labels[source], target[source]


def attack(teacher, images, base, target):
    rows = torch.arange(len(images))
    for _ in range(10):
        images = images.detach().requires_grad_()
        logits = teacher(images)
        moving = (logits.argmax(1) == base).view(-1, 1, 1, 1)
        gap = logits[rows, base] - logits[rows, target]
        (grad,) = torch.autograd.grad(-gap.sum(), images)
        norm = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        step = 0.3 * (gap.detach().view(-1, 1, 1, 1) + 1e-4) * grad / norm
        images = torch.where(moving, (images + step).clamp(-2.5, 2.5), images)
    return images.detach()


@pytest.mark.parametrize(("precision", "limit"), [("64", 1e-9), ("32", 1e-4)])
def test_official_bss_is_the_plain_loop(precision, limit):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = Settings(**{**SETTINGS.as_dict(), "precision": precision})
    data = datasets.load(settings)
    network = experiment.train_teacher(data, SETTINGS)[0].network
    teacher = Teacher(network, data, precision)
    run = experiment.train_student("bss-official", SEED, teacher, data, settings)
    attacked = [row["attacked"] for row in run.rows if "attacked" in row]
    assert len(attacked) == 4
    assert min(attacked[1:]) > 50
    student = networks.build(Spec("small-4-1", 1, 10), 1000 + SEED).train()
    if precision == "64":
        student.double()
    plain = plain_loop(student, copy.deepcopy(teacher.network), data, settings)
    torch.set_num_threads(before)
    gaps = {
        name: (value - plain.state_dict()[name]).abs().max().item()
        for name, value in run.network.state_dict().items()
        if value.is_floating_point()
    }
    assert max(gaps.values()) <= limit, gaps
