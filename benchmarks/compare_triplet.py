"""The triplet family against what people use, interleaved: ``python -m benchmarks.compare_triplet``.

Batch-hard and batch-all forward and backward, the selection against the bare matrix product of its shape, and the peak
of the process's memory. The ratio is that of the medians; its spread is that of the ratio within a round.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import amkd_fast as af
from benchmarks import contest, machine, peers
from benchmarks.contest import Contestant, WrongResult
from benchmarks.interleave import interleave, spread
from benchmarks.measure import block_length

MARGIN, WIDTH = 1.0, 128
BLOCK = 20e-3  # seconds
ROUNDS, SECONDS = 20, 6.0
SLOW = 1.0  # seconds of a call from which three rounds must do


@dataclass(frozen=True)
class Case:
    """N rows of classes in turn; ``targets`` are speed-ups over contestants by name."""

    mining: str
    count: int
    classes: int
    targets: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.mining} [{self.count}, {WIDTH}] fp32, {self.classes} classes"


METRIC_LEARNING = peers.METRIC_LEARNING
CASES = (
    Case("hard", 128, 16, {METRIC_LEARNING: 3.0}),
    Case("hard", 1024, 16, {METRIC_LEARNING: 15.0, "compile cdist": 5.0, "eager tiled": 3.0}),
    Case("hard", 4096, 16, {METRIC_LEARNING: 20.0, "compile cdist": 5.0, "eager tiled": 3.0}),
    *(Case("all", count, classes, {METRIC_LEARNING: 100.0}) for count in (512, 1024) for classes in (100, 10)),
)
# Of millions of triplets some lie so close to the edge of the hinge that fp32 decides otherwise than fp64.
EDGE_LIMIT = 1e-3
PRODUCT_LIMIT = 1.35  # of the time of the matrix product
MEMORY = ((4096, "ours", 24e6), (4096, METRIC_LEARNING, None), (32768, "ours", 1e9))


def batch_hard(rows: Tensor, labels: Tensor) -> Tensor:
    return af.triplet_margin_loss(rows, labels, margin=MARGIN)


def batch_all(rows: Tensor, labels: Tensor) -> Tensor:
    return af.triplet_margin_loss(rows, labels, margin=MARGIN, mining="all", reduction="mean_nonzero")


def inputs(count: int, classes: int) -> tuple[Tensor, Tensor]:
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0))
    return rows.requires_grad_(), torch.arange(count) % classes


def contestants(case: Case) -> tuple[Contestant, list[Contestant]]:
    """The reference and those that are timed."""
    call = batch_hard if case.mining == "hard" else batch_all
    others = peers.batch_hard(MARGIN) if case.mining == "hard" else peers.batch_all(MARGIN)
    return contest.reference(call), [*others, *contest.ours("triplet", call, "cpu")]


def compare(case: Case) -> dict[str, Any]:
    """Check and time one case."""
    torch._dynamo.reset()
    tensors = inputs(case.count, case.classes)
    reference, entries = contestants(case)
    expected = contest.truth(reference.call, tensors)
    limit = EDGE_LIMIT if case.mining == "all" else None
    errors = {entry: contest.verify(entry, tensors, expected, limit) for entry in entries}
    gc.collect()
    gc.disable()
    try:
        lengths = {entry: block_length(entry, tensors, BLOCK) for entry in entries}
        slow = any(timed(entry, tensors) > SLOW for entry in entries)
        times = interleave(entries, tensors, lengths, 3 if slow else ROUNDS, 0.0 if slow else SECONDS)
    finally:
        gc.enable()
    ours = next(entry for entry in entries if entry.ours)
    against = {}
    for entry in entries:
        if entry is ours:
            continue
        ratio = statistics.median(times[entry]) / statistics.median(times[ours])
        paired = [theirs / mine for theirs, mine in zip(times[entry], times[ours], strict=True)]
        target = case.targets.get(entry.name)
        against[entry.name] = {"ratio": ratio, **spread(paired, "ratio_in_a_round", 1.0), "target": target}
    return {
        "case": str(case),
        **asdict(case),
        "rounds": len(times[ours]),
        "contestants": {
            entry.name: {
                **spread(times[entry], "ms", 1e3),
                "value_error": errors[entry].value,
                "grad_error": errors[entry].grad,
            }
            for entry in entries
        },
        "ours": ours.name,
        "against": against,
    }


def timed(entry: Contestant, tensors: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    with entry.chosen():
        entry.call(*tensors).backward()
    tensors[0].grad = None
    return time.perf_counter() - start


def selection(count: int) -> dict[str, Any]:
    """The selection of farthest positives and nearest negatives against ``torch.mm`` into a matrix that is there."""
    from amkd_fast.ops.triplet import native

    rows, labels = inputs(count, 16)
    rows, product = rows.detach(), torch.empty(count, count)

    def select() -> None:
        native.cpu.select(rows, None, labels, labels, None, 0, 0, 1, True)

    def multiply() -> None:
        torch.mm(rows, rows.mT, out=product)

    times: dict[str, list[float]] = {"select": [], "product": []}
    start = time.perf_counter()
    while len(times["select"]) < ROUNDS or time.perf_counter() - start < SECONDS:
        for name, call in (("select", select), ("product", multiply)):
            call()
            before = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - before)
    ratio = statistics.median(times["select"]) / statistics.median(times["product"])
    paired = [mine / theirs for mine, theirs in zip(times["select"], times["product"], strict=True)]
    return {
        "count": count,
        **spread(times["select"], "select_us", 1e6),
        **spread(times["product"], "product_us", 1e6),
        "gflops": 2e-9 * count * count * WIDTH / statistics.median(times["product"]),
        "ratio": ratio,
        **spread(paired, "ratio_in_a_round", 1.0),
        "limit": PRODUCT_LIMIT,
    }


def peak_memory(count: int, name: str) -> int:
    """Bytes that a process of its own holds at most during forward and backward, beyond what it held before."""
    command = [sys.executable, "-m", "benchmarks.compare_triplet", "--measure-memory", str(count), name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=machine.ROOT).stdout)


def measure_memory(count: int, name: str) -> int:
    """The rise of the resident set's high-water mark; a small call first has loaded and allocated what stays."""
    _, entries = contestants(Case("hard", count, 16))
    entry = next(entry for entry in entries if entry.name == name or (name == "ours" and entry.ours))
    timed(entry, inputs(256, 16))
    tensors = inputs(count, 16)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
    before = high_water()
    timed(entry, tensors)
    return high_water() - before


def high_water() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare_triplet", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--only", choices=("hard", "all"), help="the cases of one mining mode")
    parser.add_argument("--measure-memory", nargs=2, metavar=("N", "NAME"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    machine.use_threads()
    if options.measure_memory:
        print(measure_memory(int(options.measure_memory[0]), options.measure_memory[1]))
        return 0
    start, wrong, results = time.perf_counter(), [], []
    about = machine.describe()
    for case in CASES:
        if options.only in (None, case.mining):
            print(f"{case} …", file=sys.stderr, flush=True)
            try:
                results.append(compare(case))
            except WrongResult as error:
                wrong.append(f"{case}: {error}")
    selections = [selection(count) for count in (1024, 4096)]
    absent = {name: reason for name, reason in peers.missing().items() if name == METRIC_LEARNING}
    memory = [
        {"count": count, "name": name, "bytes": peak_memory(count, name), "limit": limit}
        for count, name, limit in MEMORY
        if name not in absent
    ]
    report = {"kind": "compare_triplet", "machine": about, "cases": results, "selection": selections}
    report |= {"memory": memory, "wrong": wrong, "absent": absent, "seconds": time.perf_counter() - start}
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    print_report(report)
    return 1 if wrong else 0


def print_report(report: dict[str, Any]) -> None:
    about = report["machine"]
    print(
        f"forward + backward, {about['threads']} threads, {about['cpu']}, torch {about['torch']}, commit "
        f"{about['commit']}, load {about['load']}, {report['seconds']:.0f} s"
    )
    for result in report["cases"]:
        ours = result["contestants"][result["ours"]]
        print(
            f"\n{result['case']}: {ours['ms_median']:.3f} ms ({ours['ms_p10']:.3f}–{ours['ms_p90']:.3f}), "
            f"{result['rounds']} rounds, errors {ours['value_error']:.0e} {ours['grad_error']:.0e}"
        )
        for name, row in result["against"].items():
            theirs, span = result["contestants"][name], "({ratio_in_a_round_p10:.2f}–{ratio_in_a_round_p90:.2f})"
            print(
                f"  {name:26}{theirs['ms_median']:11.3f} ms {row['ratio']:8.2f}× {span.format(**row):18}"
                + verdict(row["ratio"], row["target"], "≥", "×")
            )
    print()
    for row in report["selection"]:
        print(
            f"selection [{row['count']}, {WIDTH}]: {row['select_us_median']:.0f} µs, product "
            f"{row['product_us_median']:.0f} µs ({row['gflops']:.0f} GF/s): {row['ratio']:.2f}× "
            f"({row['ratio_in_a_round_p10']:.2f}–{row['ratio_in_a_round_p90']:.2f}) "
            + verdict(row["ratio"], row["limit"], "≤", "×")
        )
    for row in report["memory"]:
        limit = None if row["limit"] is None else row["limit"] / 1e6
        print(
            f"peak memory N = {row['count']}, {row['name']}: {row['bytes'] / 1e6:.1f} MB "
            + verdict(row["bytes"] / 1e6, limit, "≤", " MB")
        )
    for name, reason in report["absent"].items():
        print(f"not in the comparison: {name}: {reason}")
    for line in report["wrong"]:
        print(f"WRONG, not timed: {line}")


def verdict(value: float, target: float | None, sign: str, unit: str) -> str:
    if target is None:
        return ""
    reached = value >= target if sign == "≥" else value <= target
    return f"target {sign} {target:g}{unit} {'pass' if reached else 'MISS'}"


if __name__ == "__main__":
    sys.exit(main())
