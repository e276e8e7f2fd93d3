"""Does a recorded training step what an eager one does, and what waits for the device in either?"""

from __future__ import annotations

import copy
import csv
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from amkd_fast.distill import build as choice
from amkd_fast.distill import cli
from amkd_fast.distill import lightning_module as module
from amkd_fast.distill.whole_step import WholeStep
from benchmarks.gpu.guard import caught, waits
from benchmarks.precision import tf32
from benchmarks.tape import Tape
from benchmarks.training_case import Case, Way, eager, whole

LR = 1 / 64  # a rate that fp32 holds: the recorded step reads it from a tensor of that
STEPS = {torch.float64: 6, torch.float32: 20}
COMPARED = ("KD", "BSS official", "BSS near_boundary", "AMKD with memory")
# Relative: of a loss; of all weights and running statistics by their norm. A step is the same mathematics, so fp64 must
# agree but for rounding, which the steps amplify. In fp32 the first loss must agree to a few roundings of sums over the
# batch. Later ones part, by value and padded shapes taking other kernels: once the rounding of one sample has picked
# another base, target or negative the runs differ by that sample's share of the loss. 5 % is less than a wrong learning
# rate, seed or weight of a loss makes within those steps, and 1 % of the weights is a fraction of the way they go.
LIMITS = {
    torch.float64: {"first": 1e-9, "losses": 1e-6, "weights": 1e-6},
    torch.float32: {"first": 1e-4, "losses": 5e-2, "weights": 1e-2},
}
CURVE, POINTS, LEARNT = 2e-2, 4.0, 0.95  # relative, of an epoch's loss; per cent; last epoch's loss over the first's


def agreement(case: Case, faults: list[str]) -> list[dict[str, Any]]:
    """Some steps recorded, eager with padding, and eager by value, from the same weights and on the same batches."""
    rows = []
    for dtype, limits in LIMITS.items():
        teacher, student = (copy.deepcopy(network).to(dtype) for network in (case.teacher, case.student))
        methods = case.methods(dtype)
        for name in COMPARED:
            make = methods[name]
            row: dict[str, Any] = {"method": name, "dtype": str(dtype)[6:]}
            rows.append(row)
            with tf32(False), caught(f"agreement, {name} {row['dtype']}", faults):
                takes = {
                    "recorded": whole(make(fixed_shape=True), teacher, student, LR),
                    "fixed_shape": eager(make(fixed_shape=True), teacher, student, LR),
                    "by value": eager(make(fixed_shape=False), teacher, student, LR),
                }
                steps = STEPS[dtype] if case.device == "cuda" else 4
                runs = {kind: _run(case, take, steps, dtype) for kind, take in takes.items()}
                row["attacked"] = runs["by value"][2]
                for kind in ("fixed_shape", "by value"):
                    row[kind] = _distance(runs["recorded"], runs[kind])
                    for what, limit in limits.items():
                        if not row[kind][what] <= limit:
                            faults.append(
                                f"{name} {row['dtype']}, recorded against {kind}: {what} {row[kind][what]:.2g}"
                                f" apart, allowed is {limit:g}"
                            )
                moved = _norm(runs["recorded"][1] - _state(student)) / _norm(_state(student))
                row["moved"] = moved  # how far all weights went, to hold their distance against
                if name != "KD" and not any(row["attacked"]):
                    faults.append(f"{name} {row['dtype']}: nothing was attacked, so nothing was compared")
    return rows


def _run(case: Case, take: Way, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
    """Every loss, the weights at the end, and how many were attacked."""
    losses = [take(*now) for now in case.batches(steps, dtype)]
    attacked = [0 if each.attack is None else int(each.attack[0]) for each in losses]
    return torch.stack([each.total for each in losses]), _state(take.student), attacked


def _state(network: torch.nn.Module) -> Tensor:
    return torch.cat([part.double().flatten() for part in network.state_dict().values() if part.is_floating_point()])


def _norm(part: Tensor) -> float:
    return part.norm().item()


def _distance(one: tuple, two: tuple) -> dict[str, float]:
    apart = ((one[0] - two[0]).abs() / two[0].abs()).tolist()
    return {"first": apart[0], "losses": max(apart), "weights": _norm(one[1] - two[1]) / _norm(two[1])}


def synchronisations(case: Case, faults: list[str]) -> dict[str, dict[str, str]]:
    """By method and way of taking a step: where it waits for the device; empty where it does not."""
    found: dict[str, dict[str, str]] = {}
    methods = case.methods()
    for name in COMPARED:
        make, found[name] = methods[name], {}
        for kind, way in (("fixed_shape", eager), ("recorded", whole)):
            with caught(f"synchronisation, {name} {kind}", faults):
                take = way(make(fixed_shape=True), case.teacher, case.student, LR)
                now = next(case.batches(1))
                for _ in range(3):
                    take(*now)
                found[name][kind] = waits(lambda take=take, now=now: take(*now), case.device)
                if found[name][kind]:
                    faults.append(f"{name} {kind} waits for the device: {found[name][kind]}")
    return found


def command_line(device: str, faults: list[str]) -> dict[str, Any]:
    """`amkd-distill train` on the digits, recorded and not, and in low precision; the teacher is trained once."""
    words = ["--method", "amkd", "--memory", "64", "--device", device, "--no-progress", "--batch-size", "50"]
    words += ["--epochs", "4", "--teacher-epochs", "4", "--boundary-schedule", "constant"]
    words += ["--kl-weight-start", "1", "--kl-weight-end", "1"]  # so that a loss that falls has been learnt
    runs = {
        "eager": [],
        "recorded": ["--whole-step"],
        "bf16": ["--precision", "bf16"],
        "recorded bf16": ["--whole-step", "--precision", "bf16"],
    }
    if device == "cuda":
        runs["fp16"] = ["--precision", "fp16"]
    else:
        words += ["--teacher-images", "200", "--student-images", "100", "--boundary-samples", "8"]
    curves: dict[str, list[dict[str, float]]] = {}
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, tf32(False), _recordable(device):
        for number, (name, more) in enumerate(runs.items()):
            output, teacher = Path(folder, str(number)), Path(folder, "0", "teacher.ckpt")
            known = ["--teacher", str(teacher)] if number else []
            with caught(f"train {name}", faults):
                code = cli.main(["train", *words, *more, *known, "--output", str(output)])
                if code:
                    raise RuntimeError(f"amkd-distill train {' '.join(more)}: exit code {code}")
                curves[name] = _curve(output / "log.csv")
    torch.set_num_threads(threads)
    for name, rows in curves.items():
        if not rows[-1]["total"] <= LEARNT * rows[0]["total"]:
            faults.append(f"train {name} does not learn: losses {[round(row['total'], 3) for row in rows]}")
    for name in ("recorded", "recorded bf16"):
        plain = name.replace("recorded", "eager").removeprefix("eager ")
        for one, two in zip(curves.get(name, ()), curves.get(plain, ()), strict=False):
            apart = abs(one["total"] - two["total"]) / two["total"]
            same_lr = abs(one["lr"] - two["lr"]) <= 1e-6
            if not apart <= CURVE or abs(one["accuracy"] - two["accuracy"]) > POINTS or not same_lr:
                faults.append(f"train {name} against {plain}: epoch {one['epoch']:g}: {one}, {two}")
    return curves


def _curve(path: Path) -> list[dict[str, float]]:
    names = ("epoch", "lr", "total", "accuracy", "ms_per_step")
    with path.open() as file:
        return [{name: float(row[name]) for name in names} for row in csv.DictReader(file)]


@contextmanager
def _recordable(device: str) -> Iterator[None]:
    """On a CPU the command line refuses --whole-step; for a rehearsal it shall not."""
    if device == "cuda":
        yield
        return
    rehearsed = partial(WholeStep, graph=Tape)
    with mock.patch.object(choice, "_check_whole_step"), mock.patch.object(module, "WholeStep", rehearsed):
        yield
