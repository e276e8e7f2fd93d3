"""From which size on a backend pays: ``python -m benchmarks.crossover`` measures it and writes amkd_fast/crossover.py.

Every family's calls, from the smallest that mean anything upwards, on each backend that ``auto`` would try in turn,
interleaved, forward and backward where there is one. A backend gives way to the next below the size from which on it
is never slower, in the median and in nine rounds of ten. ``--table`` writes the module from the files that are there,
``--check`` only says whether it would change.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks import contest, machine
from benchmarks.contest import Contestant
from benchmarks.group import SHORT, Group, no_gradient
from benchmarks.groups import attack, images, kl, relations, segments, triplet
from benchmarks.interleave import Patience, interleave, ratio
from benchmarks.measure import block_length

MODULE = machine.ROOT / "amkd_fast" / "crossover.py"
PATIENCE = Patience(block=2e-3, rounds=15, seconds=0.0, most=5.0)
COUNTS = (1, 4, 16, 64, 256)
FP32, FP64, BF16 = torch.float32, torch.float64, torch.bfloat16

# The calls of a family with so many rows.
CALLS: dict[str, Callable[[int], list[Group]]] = {
    "kl": lambda count: [
        kl.kl_div(count, 10, FP32),
        kl.kl_div(count, 10, FP64),
        kl.kl_div(count, 10, BF16),
        kl.kl_div(count, 10, FP32, divergence="js"),
        kl.distillation_loss(count, 10, FP32),
        kl.dkd_loss(count, 10, FP32),
    ],
    "triplet": lambda count: [
        triplet.hard(count + 2, 16, 2, FP32),
        triplet.hard(count + 2, 16, 2, FP64),
        triplet.hard(count + 2, 16, 2, FP32, distance="cosine"),
        triplet.every(count + 2, 16, 2, FP32),
        triplet.nearest_negatives(count + 2, count + 2, 16, 2, 1, FP32),
    ],
    "attack": lambda count: [
        *(attack.step(rule, count, 1, 4) for rule in ("linf", "l2", "l1", "boundary", "newton")),
        attack.boundary_objective(count, 4),
        attack.ce_objective(count, 4),
        attack.bases(count, 4, 1.0),
    ],
    "segments": lambda count: [segments.segment_mse(count, dtype, width=4, side=8) for dtype in (FP32, FP64, BF16)],
    "relations": lambda count: [relations.angle(count + 2, 16, FP32), relations.distance(count + 2, 16, FP32)],
    "images": lambda count: [images.crop_flip(count, rows=1000, side=8), images.joint_augment(count, side=8)],
}


def measured(device: str) -> Iterator[dict[str, Any]]:
    """One row for each call, size and backend but the last."""
    for family, calls in CALLS.items():
        for count in COUNTS:
            for group in calls(count):
                yield from _rows(family, group, device)


def _rows(family: str, group: Group, device: str) -> Iterator[dict[str, Any]]:
    inputs, direction = group.inputs(device), group.directions[-1]
    entries = [*contest.ours(family, group.ours, device), contest.reference(group.ours)]
    expected = group.truth(group.ours, inputs)
    for entry in entries:
        group.verify(entry, inputs, expected)
    gc.collect()
    with no_gradient(inputs):
        lengths = {entry: block_length(entry, inputs, PATIENCE.block, direction) for entry in entries}
        times = interleave(entries, inputs, lengths, PATIENCE, direction)
    for entry, behind in pairwise(entries):
        row = {
            "family": family,
            "operation": group.operation,
            "sizes": group.sizes,
            "dtype": SHORT[group.dtype],
            "elements": _elements(inputs),
            "backend": entry.backend,
            "next": behind.backend,
            "ratio": ratio(times[behind], times[entry]),
        }
        print(_line(row, entry), flush=True)
        yield row


def _elements(inputs: tuple[Any, ...]) -> int:
    """What the public functions tell backends.select()."""
    return inputs[0].numel()


def _line(row: dict[str, Any], entry: Contestant) -> str:
    got = row["ratio"]
    return (
        f"{row['operation']:28}{row['elements']:9} elements {row['dtype']:5}{entry.title:18}"
        f"{got['median']:7.2f}× ({got['p10']:.2f}–{got['p90']:.2f}) faster than {row['next']}"
    )


def table(reports: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """(family, backend) → elements from which on it is taken; 0 where it never was slower."""
    found: dict[tuple[str, str], int] = {}
    for report in reports:
        for row in report["rows"]:
            key = row["family"], row["backend"]
            slower = row["ratio"]["median"] < 1 and row["ratio"]["p90"] < 1
            found[key] = max(found.get(key, 0), row["elements"] + 1 if slower else 0)
    return found


def module(reports: list[dict[str, Any]]) -> str:
    """The text of amkd_fast/crossover.py."""
    rows = [f'    ("{family}", "{backend}"): {count},' for (family, backend), count in sorted(table(reports).items())]
    where = [f"    {machine.in_words(report['machine'])}" for report in reports]
    return "\n".join(
        [
            '"""From how many elements on a backend beats the next one in ``auto``\'s order.',
            "",
            "Written by ``python -m benchmarks.crossover`` from its measurements in benchmarks/results:",
            "",
            *where,
            "",
            "What is not here was not measured and is taken at any size.",
            '"""',
            "",
            "# (operation family, backend): elements of the call's first tensor",
            "SMALLEST: dict[tuple[str, str], int] = {" + "\n".join(["", *rows, ""] if rows else []) + "}",
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crossover", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder of crossover-<device>.json")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the module")
    parser.add_argument("--check", action="store_true", help="measure nothing, exit with 1 where the module is another")
    options = parser.parse_args(arguments)
    if not (options.table or options.check):
        machine.use_threads()
        report = {"kind": "crossover", "machine": machine.describe(), "rows": list(measured(options.device))}
        path = options.results / f"crossover-{options.device}.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
    reports = [json.loads(path.read_text()) for path in sorted(options.results.glob("crossover-*.json"))]
    text = module(reports)
    if options.check:
        return 0 if MODULE.read_text() == text else 1
    MODULE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
