"""Training steps on a GPU: recorded as one CUDA graph, eager, and as the public loops write them.

    python -m benchmarks.gpu_training [--out FILE] [--cifar PATH --teacher FILE] [--seconds 60] [--dry-run]

ResNet26 teaches ResNet8, 128 images of 32 x 32, at most 32 attacked. First what a step does: recorded and eager steps
from the same weights end in the same (tolerances in benchmarks/training_checks.py), neither waits for the device,
``crop_flip`` gives the reference's batch, ``amkd-distill train`` learns with and without --whole-step and in low
precision. Then what it takes: contestants take turns in one run. --dry-run goes through it all on a CPU with small
sizes, a tape (benchmarks/tape.py) in place of the graph. The exit code is 1 when a check failed.

Students of three seeds by five methods on CIFAR-10, as JPEG files in FOLDER/train/<class>/ and FOLDER/test/<class>/,
in about ten minutes of an H100 (an estimate from launches and passes: nobody has run it; without --whole-step the
attacks' launches make it several times that)::

    amkd-distill compare --data FOLDER --methods student,kd,bss-official,bss-near_boundary,amkd --seeds 3 \
        --teacher-network resnet26 --student-network resnet8 --batch-size 128 --boundary-samples 32 \
        --teacher-epochs 15 --student-fraction 0.2 --epochs 30 --device cuda --whole-step --output runs/cifar10
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_images, machine, training_case, training_checks
from benchmarks.gpu_attack import tf32
from benchmarks.peers import attack_loops
from benchmarks.peers import training as loops_of
from benchmarks.peers.attack import public_bases
from benchmarks.rounds import interleaved, spread
from benchmarks.training_case import Case, autocast, eager, whole

TIMED = ("KD", "BSS official", "BSS near_boundary", "AMKD")
PUBLIC = {"KD": "public KD", "AMKD": "public AMKD", "BSS official": "public BSS", "BSS near_boundary": "public BSS"}


def contestants(case: Case, precision: torch.dtype | None) -> dict[str, Callable[[], object]]:
    """Steps on one batch with learning rate 0, so that every step is the same."""
    batch, now = next(case.batches(1))
    methods, found = case.methods(), {}
    for name in TIMED:
        for fixed in (False, True)[: 1 + (name != "KD")]:  # KD has nothing to pad
            take = eager(methods[name](fixed_shape=fixed), case.teacher, case.student, 0.0, precision)
            found[f"{name}, {'fixed_shape' if fixed else 'by value'}"] = lambda take=take: take(batch, now)
        if precision is None:  # a recording under autocast is timed by the command line's ms_per_step
            take = whole(methods[name](fixed_shape=True), case.teacher, case.student, 0.0)
            found[f"{name}, recorded"] = lambda take=take: take(batch, now)
    loud = attack_loops.quiet(case.teacher).requires_grad_()  # as the public trainer leaves it
    public = public_bases(case.limit)
    loops = {
        "public KD": loops_of.eager_kd,
        "public BSS": loops_of.eager_loop(attack_loops.bss_loop, False, public),
        "public AMKD": loops_of.eager_loop(attack_loops.bss_loop, True, public),
    }
    for name, loop in loops.items():

        def loss(own: torch.nn.Module, loop: Callable = loop) -> Tensor:
            with autocast(case.device, precision):
                return loop(batch, loud, own)

        found[name] = training_case.step_of(loss, case.student)
    return found


def measure(case: Case, name: str, precision: torch.dtype | None, deadline: float, faults: list[str]) -> dict[str, Any]:
    """Times of all steps, and within a round their ratios: to KD taken the same way, and to the public loop."""
    with tf32(True):
        own: list[str] = []
        times = interleaved(contestants(case, precision), case.device, deadline, own)
    faults += [f"{name}, {fault}" for fault in own]
    rows: dict[str, Any] = {}
    for entry, values in times.items():
        row = rows[entry] = {**spread(values), "images_per_second": case.batch / spread(values)["median"]}
        method, _, way = entry.partition(", ")
        others = {"over KD": f"KD, {way.replace('fixed_shape', 'by value')}" if way else "public KD"}
        others["public over it"] = PUBLIC.get(method, entry)
        if others["over KD"] in set(times) - {entry}:
            row["over KD"] = spread([a / b for a, b in zip(values, times[others["over KD"]], strict=True)])
        if others["public over it"] in set(times) - {entry}:
            row["public over it"] = spread(
                [b / a for a, b in zip(values, times[others["public over it"]], strict=True)]
            )
    return {"precision": name, "rows": rows}


def table(report: dict[str, Any]) -> str:
    lines = []
    for row in report.get("agreement", []):
        if "fixed_shape" in row:
            apart = "  ".join(
                f"{kind}: first {row[kind]['first']:.0e}, losses {row[kind]['losses']:.0e},"
                f" weights {row[kind]['weights']:.0e}"
                for kind in ("fixed_shape", "by value")
            )
            lines.append(f"recorded against eager, {row['method']:18}{row['dtype']:8} {apart}")
    waiting = {name: ways for name, ways in report.get("waits", {}).items() if any(ways.values())}
    lines.append(f"waits for the device: {waiting or 'none of ' + ', '.join(report.get('waits', {}))}")
    for part in report.get("times", []):
        for name, row in part["rows"].items():
            ratios = "".join(
                f"  {title} {row[title]['median']:.2f} ({row[title]['p10']:.2f}-{row[title]['p90']:.2f})"
                for title in ("over KD", "public over it")
                if title in row
            )
            ms = "-".join(f"{1e3 * row[key]:.2f}" for key in ("p10", "p90"))
            lines.append(
                f"{part['precision']:6}{name:32}{1e3 * row['median']:9.2f} ms ({ms})"
                f"{row['images_per_second']:10.0f} images/s{ratios}"
            )
    for name, row in report.get("crop_flip", {}).get("rows", {}).items():
        lines.append(
            f"crop_flip {name:20}{1e6 * row['seconds']:9.2f} µs{row['gb_per_s']:8.0f} GB/s{row['of_copy']:6.0%} of copy"
            f", {1e6 * row['seconds_eager']:.1f} µs a call"
        )
    for name, rows in report.get("train", {}).items():
        told = ", ".join(f"{row['total']:.3f} ({row['accuracy']:.0f} %)" for row in rows)
        lines.append(f"train {name:16}{rows[-1]['ms_per_step']:8.1f} ms a step, losses and accuracies: {told}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--cifar", type=Path, help="CIFAR-10 as JPEG files, an archive or a folder")
    parser.add_argument("--teacher", type=Path, help="what benchmarks.cifar_teacher saved")
    parser.add_argument("--seconds", type=float, default=60.0, help="from then on fewer rounds")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with small sizes")
    options = parser.parse_args()
    device = "cpu" if options.dry_run else "cuda"
    deadline = time.monotonic() + options.seconds
    faults: list[str] = []
    if options.dry_run:
        torch.set_num_threads(1)  # sizes that two threads would only wait for each other in
    case = training_case.case(options.cifar, options.teacher, device)
    report: dict[str, Any] = {"machine": machine.describe(), "setting": case.about, "faults": faults}
    precisions = {"tf32": None, "bf16": torch.bfloat16}
    parts: dict[str, Callable[[], Any]] = {
        "agreement": lambda: training_checks.agreement(case, faults),
        "waits": lambda: training_checks.synchronisations(case, faults),
        "train": lambda: training_checks.command_line(device, faults),
        "times": lambda: [measure(case, name, kind, deadline, faults) for name, kind in precisions.items()],
        "crop_flip": lambda: gpu_images.crop_flip(device, deadline, faults),
    }
    for name, part in parts.items():
        start = time.monotonic()
        with training_checks.caught(name, faults):
            report[name] = part()
        report.setdefault("seconds", {})[name] = round(time.monotonic() - start, 1)
        print(f"{name}: {report['seconds'][name]} s, faults so far: {len(faults)}", flush=True)
        if options.out:  # whatever happens next, this much is kept
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"images: {case.about['images']}; seconds: {report['seconds']}")
    for fault in faults:
        print("FAULT", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
