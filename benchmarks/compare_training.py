"""A training step of AMKD against plain KD, the eager loops people use, and the network passes that it cannot avoid.

    python -m benchmarks.compare_training --cifar PATH --teacher FILE --output benchmarks/results/training-cpu.json

ResNet26 teaches ResNet8 on CIFAR-10, batch 128, at most 32 attacked images, fp32. ``benchmarks.cifar_teacher`` makes
the teacher's file; without file and images both are synthetic, which shows that it runs. The student learns by KD
first, so that the attack finds what it finds in training. Steps are repeated with learning rate 0 on one batch,
contestants interleaved; ours and the eager loop agree before anything is timed. The bare passes are those of the same
step: the folded teacher, the attack's shrinking batches.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amkd_fast.distill.methods import AMKD, BSS, KD, Batch, Method, Moment
from amkd_fast.distill.networks import Spec, build
from amkd_fast.ops.attack import select_boundary_bases
from benchmarks import attack_rivals, cifar_teacher, machine
from benchmarks.cifar_teacher import LOWER, UPPER
from benchmarks.contest import WrongResult
from benchmarks.whole_attack import network_passes, setting

BATCH, LIMIT, WARM_UP, ROUNDS = 128, 32, 150, 25
NOW = Moment(epoch=0, epochs=60, draw=7)
TEMPERATURE, ALPHA, BETA, GAMMA, MARGIN = 3.0, 4.0, 2.0, 0.3, 1.0
BOUNDS = {"lower": LOWER, "upper": UPPER}


def ours() -> dict[str, Method]:
    return {
        "KD": KD(),
        "BSS official": BSS(preset="official", limit=LIMIT),
        "BSS near_boundary": BSS(attack=BOUNDS, limit=LIMIT),
        "AMKD official": AMKD(preset="official", limit=LIMIT),
        "AMKD": AMKD(attack=BOUNDS, limit=LIMIT),
    }


def soft_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(student / TEMPERATURE, 1), F.softmax(teacher / TEMPERATURE, 1), reduction="batchmean")


def eager_kd(batch: Batch, teacher: nn.Module, student: nn.Module) -> Tensor:
    with torch.no_grad():
        taught = teacher(batch.images)
    logits = student(batch.images)
    return F.cross_entropy(logits, batch.labels) + ALPHA * soft_kl(logits, taught)


def eager_loop(attack: Callable, metric: bool, select: Callable) -> Callable:
    """BSS as the public trainer writes it; with ``metric`` the triplets of AMKD on top, by a matrix of distances."""

    def loss(batch: Batch, teacher: nn.Module, student: nn.Module) -> Tensor:
        with torch.no_grad():
            taught = teacher(batch.images)
        logits = student(batch.images)
        total = F.cross_entropy(logits, batch.labels) + ALPHA * soft_kl(logits, taught)
        found = select(logits.detach(), taught, batch.labels)
        source, base, target = (column[found.valid] for column in (found.index, found.base, found.target))
        images = attack(teacher, batch.images[source], base, target).images
        with torch.no_grad():
            aimed = teacher(images)
        attacked = student(images)
        extra = soft_kl(attacked, aimed)
        if metric:
            positive = (attacked - logits[source]).norm(dim=1)
            other = (batch.labels != base[:, None]) & (batch.labels != target[:, None])
            negative = torch.cdist(attacked, logits).masked_fill(~other, torch.inf).amin(1)
            extra = extra + GAMMA * F.relu(positive - negative + MARGIN).mean()
        return total + BETA * extra

    return loss


def step_of(loss: Callable[[nn.Module], Tensor], student: nn.Module) -> Callable[[], Tensor]:
    """A whole step on a copy of the student; the learning rate is 0, so that every step is the same."""
    student = copy.deepcopy(student).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def step() -> Tensor:
        optimizer.zero_grad()
        total = loss(student)
        total.backward()
        optimizer.step()
        return total.detach()

    return step


def bare_passes(method: Method, batch: Batch, teacher: nn.Module, student: nn.Module) -> Callable[[], None]:
    """The passes through the networks that a step of the method makes, on the same images, and nothing else."""
    passes = []

    def record(function: Callable, arguments: tuple, options: dict) -> Any:
        passes.append((function, tuple(_own(part) for part in arguments), options))
        return function(*arguments, **options)

    method(batch, teacher, student, NOW)  # prepares the view of the teacher
    attacked = []
    hook = student.register_forward_pre_hook(lambda _, inputs: attacked.append(inputs[0].detach()))
    with network_passes(record):
        method(batch, teacher, student, NOW)
    hook.remove()
    sizes = [images.clone() for images in attacked]
    student = copy.deepcopy(student).train()

    view = method.view_of(teacher)

    def run() -> None:
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
        outputs = [student(images) for images in sizes]
        torch.autograd.backward(outputs, [torch.full_like(output, 1e-3) for output in outputs])

    return run


def _own(part: Any) -> Any:
    """The attack works on its images in place."""
    return part.detach().clone() if torch.is_tensor(part) else part


def agree(batch: Batch, teacher: nn.Module, student: nn.Module) -> dict[str, float]:
    """Loss of the official methods against the eager loop's on the same bases, in fp64.

    Raises:
        WrongResult: They differ.
    """
    wide = Batch(batch.images[:48].double(), batch.labels[:48])
    networks = [copy.deepcopy(network).double() for network in (teacher, student)]

    def select(*parts: Tensor):
        return select_boundary_bases(*parts, LIMIT, seed=NOW.draw)

    found = {}
    for name, metric in (("BSS official", False), ("AMKD official", True)):
        method = ours()[name]
        method.fold = False
        mine = method(wide, networks[0], copy.deepcopy(networks[1]).train(), NOW).total
        loop = eager_loop(attack_rivals.bss_loop_lean, metric, select)
        theirs = loop(wide, attack_rivals.quiet(networks[0]), copy.deepcopy(networks[1]).train())
        found[name] = abs(mine.item() - theirs.item()) / abs(theirs.item())
        if not found[name] <= 1e-9:
            raise WrongResult(f"{name}: {mine.item()} against the eager loop's {theirs.item()}")
    return found


def learnt(student: nn.Module, teacher: nn.Module, pixels: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """The student after some steps of KD."""
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    draws, method = torch.Generator().manual_seed(0), KD()
    for step in range(steps):
        rows = torch.randint(len(labels), (BATCH,), generator=draws)
        batch = Batch(cifar_teacher.normalise(pixels[rows]), labels[rows])
        optimizer.zero_grad()
        method(batch, teacher, student.train(), NOW._replace(draw=step)).total.backward()
        optimizer.step()
    return student


def contest(entries: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every entry, one a round; each has run once before."""
    times: dict[str, list[float]] = {name: [] for name in entries}
    for entry in entries.values():
        entry()
    names = list(entries)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            entries[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def ratios(times: dict[str, list[float]], name: str, others: dict[str, str]) -> dict[str, dict[str, float]]:
    """How many times longer the others take than ``name``, within a round."""
    found = {}
    for title, other in others.items():
        values = [b / a for a, b in zip(times[name], times[other], strict=True)]
        low, *_, high = statistics.quantiles(values, n=10, method="inclusive")
        found[title] = {"median": statistics.median(values), "p10": low, "p90": high}
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_training", description=__doc__.splitlines()[0])
    parser.add_argument("--cifar", type=Path, help="archive or folder of the images; without: patterns")
    parser.add_argument("--teacher", type=Path, help="file of benchmarks.cifar_teacher")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    machine.use_threads()
    torch.manual_seed(0)

    teacher, pixels, labels, about = setting(options.cifar, options.teacher)
    teacher.requires_grad_(False)
    student = learnt(build(Spec("resnet8", 3, 10), 0), teacher, pixels[BATCH:], labels[BATCH:], WARM_UP)
    batch = Batch(cifar_teacher.normalise(pixels[:BATCH]), labels[:BATCH])
    agreement = agree(batch, teacher, student)

    loud = copy.deepcopy(teacher).requires_grad_()  # as the public trainer leaves it
    public = attack_rivals.public_bases(LIMIT)
    rivals = {
        "eager KD": eager_kd,
        "eager BSS loop": eager_loop(attack_rivals.bss_loop, False, public),
        "eager AMKD loop": eager_loop(attack_rivals.bss_loop, True, public),
    }
    entries: dict[str, Callable[[], Any]] = {}
    for name, method in ours().items():
        entries[name] = step_of(lambda own, method=method: method(batch, teacher, own, NOW).total, student)
        entries[f"{name}, bare passes"] = bare_passes(method, batch, teacher, copy.deepcopy(student).train())
    for name, loss in rivals.items():
        entries[name] = step_of(lambda own, loss=loss: loss(batch, loud, own), student)
    attacked = ours()["AMKD"](batch, teacher, copy.deepcopy(student).train(), NOW).attack.tolist()
    times = contest(entries, options.rounds)

    comparisons = {
        name: ratios(
            times, name, {"plain KD": "KD", "its bare passes": f"{name}, bare passes", **{r: r for r in rivals}}
        )
        for name in ours()
    }
    result = {
        "machine": machine.describe(),
        "case": {
            "batch": BATCH,
            "limit": LIMIT,
            "attacked": attacked,
            "teacher": "ResNet26",
            "student": "resnet8",
            **about,
        },
        "agreement": agreement,
        "ms": {name: statistics.median(values) for name, values in times.items()},
        "times_longer": comparisons,
    }
    print(f"attacked, accepted, crossed, third: {attacked}; loss against the eager loop in fp64: {agreement}")
    for name in ours():
        row = comparisons[name]
        print(f"{name:18}{result['ms'][name]:8.1f} ms", end="")
        for title, spread in row.items():
            print(f"  {title} {spread['median']:.2f} ({spread['p10']:.2f}-{spread['p90']:.2f})", end="")
        print()
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
