"""GPU training: does a training step do what it should? ``python -m benchmarks.gpu.training [--out FILE] [--dry-run]``.

Recorded and eager steps from the same weights end in the same, and none of them waits for the device. How long steps
take is the business of ``benchmarks.compare training``. --dry-run goes through it all on a CPU with small sizes, where
a recorded step is run again instead.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks import training_case
from benchmarks.contest import tf32
from benchmarks.gpu import script
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


def case(device: str) -> Case:
    return training_case.of_environment(device) if device == "cuda" else training_case.rehearsal()


def agreement(device: str, faults: list[str]) -> list[dict[str, Any]]:
    """Some steps recorded, eager with padding, and eager by value, from the same weights and on the same batches."""
    found, rows = case(device), []
    for dtype, limits in LIMITS.items():
        teacher, student = copy.deepcopy(found.teacher).to(dtype), found.pupil(dtype)
        for name in COMPARED:
            make, title = found.methods(dtype)[name], f"{name} {str(dtype)[6:]}"
            with tf32(False), script.caught(f"agreement, {title}", faults):
                steps = STEPS[dtype] if device == "cuda" else 4
                recorded = _run(found, whole(make(fixed_shape=True), teacher, student, LR), steps, dtype)
                row: dict[str, Any] = {"method": title, "attacked": recorded[2]}
                for kind in ("fixed_shape", "by value"):
                    way = eager(make(fixed_shape=kind == "fixed_shape"), teacher, student, LR)
                    row[kind] = _distance(recorded, _run(found, way, steps, dtype))
                    for what, limit in limits.items():
                        if not row[kind][what] <= limit:
                            apart = f"{what} {row[kind][what]:.2g} apart, allowed is {limit:g}"
                            faults.append(f"{title}, recorded against {kind}: {apart}")
                if name != "KD" and not any(row["attacked"]):
                    faults.append(f"{title}: nothing was attacked, so nothing was compared")
                rows.append(row)
    return rows


def _run(found: Case, way: Way, steps: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[int]]:
    """Every loss, the weights and statistics at the end, and how many were attacked."""
    losses = [way.take(*now) for now in found.batches(steps, dtype)]
    attacked = [0 if each.attack is None else int(each.attack[0]) for each in losses]
    state = [part.double().flatten() for part in way.student.state_dict().values() if part.is_floating_point()]
    return torch.stack([each.total for each in losses]), torch.cat(state), attacked


def _distance(one: tuple, two: tuple) -> dict[str, float]:
    apart = ((one[0] - two[0]).abs() / two[0].abs()).tolist()
    return {"first": apart[0], "losses": max(apart), "weights": ((one[1] - two[1]).norm() / two[1].norm()).item()}


def synchronisations(device: str, faults: list[str]) -> dict[str, str]:
    """By method and way of taking a step: where it waits for the device; empty where it does not."""
    found, rows = case(device), {}
    now = next(found.batches(1))
    for name in COMPARED:
        for kind, way in (("fixed_shape", eager), ("recorded", whole)):
            with script.caught(f"synchronisation, {name} {kind}", faults):
                take = way(found.methods()[name](fixed_shape=True), found.teacher, found.student, LR).take
                for _ in range(3):
                    take(*now)
                rows[f"{name} {kind}"] = waited = script.waits(lambda take=take: take(*now), device)
                if waited:
                    faults.append(f"{name} {kind} waits for the device: {waited}")
    return rows


def table(report: dict[str, Any]) -> str:
    lines = []
    for row in report.get("agreement", []):
        kinds = ("fixed_shape", "by value")
        apart = {kind: ", ".join(f"{what} {size:.0e}" for what, size in row.get(kind, {}).items()) for kind in kinds}
        lines.append(f"recorded against eager, {row['method']:28} {apart}")
    waiting = {name: place for name, place in report.get("synchronisations", {}).items() if place}
    lines.append(f"waits for the device: {waiting or 'nothing'}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parts = {part.__name__: part for part in (agreement, synchronisations)}
    return script.run(__doc__, arguments, parts, table)


if __name__ == "__main__":
    sys.exit(main())
