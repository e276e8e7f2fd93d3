"""docs/predictions-h200.md: what the figures of the machine code give, and what was measured beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from benchmarks import machine
from benchmarks.predictions import chip, machine_code
from benchmarks.predictions.cases import Case, Launch
from benchmarks.predictions.machine_code import Kernel

PATH = machine.ROOT / "docs" / "predictions-h200.md"
NOTES = Path(__file__).with_name("notes.md")
NEAR = 0.8  # of the time of what binds: worth naming, too


class Prediction(NamedTuple):
    case: Case
    launch: Launch  # the longest
    kernel: Kernel
    occupancy: chip.Occupancy
    blocks: int
    time: chip.Time
    seconds: float  # of all launches


def predict(case: Case, kernels: dict[str, Kernel]) -> Prediction:
    total, longest = 0.0, None
    for launch in case.launches:
        kernel = kernels[machine_code.name_of(case, launch)]
        blocks, threads = kernel.blocks or launch.blocks, kernel.threads or launch.threads
        occupancy = chip.occupancy(threads, kernel.registers, kernel.shared + launch.shared, blocks)
        taken = [
            (way, loop.trips or loop.reads / way.loaded) for way, loop in zip(kernel.ways, launch.loops, strict=True)
        ]
        asked = [way.ahead for way, loop in zip(kernel.ways, launch.loops, strict=True) if loop.reads]
        time = chip.time(
            taken,
            bytes_moved=launch.bytes,
            operations=launch.operations,
            resident=threads * min(blocks, occupancy.blocks * chip.MULTIPROCESSORS),
            blocks=blocks,
            asked=min(asked, default=0),
        )
        total += time.seconds * launch.times
        if longest is None or time.seconds > longest.time.seconds:
            longest = Prediction(case, launch, kernel, occupancy, blocks, time, 0.0)
    return longest._replace(seconds=total)


def measured(folder: Path) -> dict[tuple[str, str, str, str, str], float]:
    """Microseconds of our calls on a GPU, by operation, sizes, dtype, direction and backend."""
    found = {}
    for path in sorted(folder.glob("*-cuda.json")):
        for row in json.loads(path.read_text()).get("groups", ()):
            sizes = ", ".join(f"{name} = {size}" for name, size in row["sizes"].items())
            for title, entry in row["contestants"].items():
                if entry["ours"] and not entry["form"]:
                    key = row["operation"], sizes, row["dtype"], row["direction"], title.split()[-1]
                    found[key] = entry["us"]["median"]
    return found


def text(cases: list[Case], versions: dict[str, str], kernels: dict[str, Kernel], measurements: dict) -> str:
    of = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name != "torch")
    rows = [_row(predict(case, kernels), measurements) for case in cases]
    head = (
        "call", "", "size", "MB", "registers", "shared, KB", "warps an SM", "waves", "in flight a thread, B",
        "instructions an element", "of these fma", "alu", "special", "fp64", "memory", "predicted, µs", "binds",
        "measured, µs",
    )  # fmt: skip
    table = "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))
    return NOTES.read_text().format(
        versions=of,
        table=table,
        copy=f"{chip.BYTES_A_SECOND / 1e12:g}",
        product=f"{chip.OPERATIONS_A_SECOND / 1e12:g}",
        clock=f"{chip.CLOCK / 1e9:g}",
        multiprocessors=chip.MULTIPROCESSORS,
        launch=f"{chip.LAUNCH_SECONDS * 1e6:g}",
        latency=f"{chip.LATENCY * 1e6:g}",
        near=f"{NEAR:.0%}".replace("%", " %"),
        **chip.LANES,
    )


def _row(found: Prediction, measurements: dict) -> tuple[str, ...]:
    case, time = found.case, found.time
    first, *others = time.order
    near = [
        f"{name} {time.parts[name] / time.seconds:.0%}" for name in others if time.parts[name] > NEAR * time.seconds
    ]
    binds = f"{first} ({', '.join(near)})" if near else first
    counts = [""] * 6
    if case.elements and found.launch.loops:
        per = []
        for unit in chip.LANES:
            done = sum(
                getattr(way, unit) * (loop.trips or loop.reads / way.loaded)
                for way, loop in zip(found.kernel.ways, found.launch.loops, strict=True)
            )
            per.append(done / case.elements)
        counts = [f"{number:.3g}" if number else "0" for number in per]
    key = case.operation, case.sizes, case.dtype, case.direction, case.backend
    seen = f"{measurements[key]:.4g}" if key in measurements else "not yet"
    ahead = [way.ahead for way in found.kernel.ways]
    shared = (found.kernel.shared + found.launch.shared) / 1024
    bytes_moved = sum(launch.bytes * launch.times for launch in case.launches)
    return (
        f"{case.operation}, {case.direction}",
        {"cuda": "CUDA C++", "triton": "Triton"}[case.backend],
        f"{case.sizes}, {case.dtype}",
        f"{bytes_moved / 1e6:.4g}",
        str(found.kernel.registers),
        f"{shared:.3g}",
        str(found.occupancy.warps),
        f"{found.occupancy.waves:.2f}",
        str(min(ahead)) if ahead else "",
        *counts,
        f"{found.seconds * 1e6:.3g}",
        binds,
        seen,
    )
