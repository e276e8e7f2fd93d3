"""How near the headline kernels are to their limits: ``python -m benchmarks.gpu.limits [--out FILE] [--dry-run]``.

Nsight Compute counts what one call of each moves, with cold caches; the limit is the fewest bytes at the rate of a
large copy, or the products at the rate of ``torch.mm``, both measured here. Where the counters may not be read the
reason is told, and durations come from PyTorch's profiler, with the caches as the call before left them. ``--dry-run``
takes small calls on a CPU by the host's clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import roofline
from benchmarks.gpu import counters, headline, kernels, script
from benchmarks.gpu.calls import Call
from benchmarks.gpu.counters import Refused

COPIED = {"cuda": 1 << 30, "cpu": 1 << 24}  # bytes, more than a cache holds


def measure(device: str, faults: list[str], seconds: float) -> dict[str, Any]:
    """One row a call and backend, and why there are no counters, where there are none."""
    entries, reason = headline.entries(device), ""
    try:
        if device == "cpu":
            raise Refused("a rehearsal on a CPU")
        program = [sys.executable, "-m", "benchmarks.gpu.headline"]
        with tempfile.TemporaryDirectory() as folder:
            rows = counters.collect(program, Path(folder, "ncu.csv"), seconds)
        found = counters.by_call(rows, len(entries))
    except Refused as error:
        found, reason = durations(device), str(error)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rates = {"copy": roofline.copy_rate(COPIED[device], device), "product": roofline.product_rate(dtype, device)}
    rows = [judged(call, name, parts, rates) for (call, name), parts in zip(entries, found, strict=True)]
    return {"no_counters": reason, "rates": rates, "rows": rows}


def durations(device: str) -> list[list[dict[str, Any]]]:
    """The kernels of each call and their times: on a GPU by PyTorch's profiler, on a CPU the call by the clock."""
    found: list[list[dict[str, Any]]] = []

    def profiled(once: Callable[[], object]) -> None:
        events = kernels.on_device(kernels.trace(once, device))
        found.append([{"kernel": counters.short(event.name()), "ns": event.duration_ns()} for event in events])

    def timed(once: Callable[[], object]) -> None:
        times = []
        for _ in range(5):
            start = time.perf_counter_ns()
            once()
            times.append(time.perf_counter_ns() - start)
        found.append([{"kernel": "the call", "ns": statistics.median(times)}])

    headline.run(device, profiled if device == "cuda" else timed)
    return found


def judged(call: Call, backend: str, parts: list[dict[str, Any]], rates: dict[str, float]) -> dict[str, Any]:
    """A call's kernels together, beside its limit; the busiest kernel's figures stand for it where they do not add."""
    seconds = 1e-9 * sum(part["ns"] or 0.0 for part in parts)
    limit = max(call.work.bytes / rates["copy"], call.work.products / rates["product"])
    row: dict[str, Any] = {
        "call": str(call),
        "backend": backend,
        "us": 1e6 * seconds,
        "limit_us": 1e6 * limit,
        "of_limit": limit / seconds if seconds else None,
        "fewest_bytes": call.work.bytes,
        "kernels": parts,
    }
    counts = [part.get(key) for part in parts for key in ("read", "written")]
    if parts and seconds and None not in counts:
        longest = max(parts, key=lambda part: part["ns"] or 0.0)
        row |= {
            "moved_bytes": sum(counts),
            "gb_per_s": 1e-9 * sum(counts) / seconds,
            "of_copy": sum(counts) / seconds / rates["copy"],
            "moved_over_fewest": sum(counts) / call.work.bytes,
            **{key: longest.get(key) for key in ("tensor", "occupancy", "registers")},
        }
    return row


def table(report: dict[str, Any]) -> str:
    found = report.get("kernels")
    if found is None:
        return "no figures"
    columns = ("us", "of_limit", "gb_per_s", "of_copy", "moved_over_fewest", "tensor", "occupancy", "registers")
    formats = ("10.1f", "8.0%", "7.0f", "8.0%", "8.2f", "8.0f", "7.0f", "6.0f")
    widths = (10, 8, 7, 8, 8, 8, 7, 6)
    heads = ("µs", "limit", "GB/s", "of copy", "moved/×", "tensor%", "occ. %", "regs")
    title = "call by backend and kernels"
    lines = [f"{title:64}" + "".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True))]

    def cells(row: dict[str, Any]) -> str:
        values = (row.get(key) for key in columns)
        return "".join(
            f"{'-':>{w}}" if value is None else f"{value:{f}}"
            for value, f, w in zip(values, formats, widths, strict=True)
        )

    for row in found["rows"]:
        lines.append(f"{row['call'] + ', ' + row['backend']:64}{cells(row)}")
        for part in row["kernels"] if len(row["kernels"]) > 1 else ():
            lines.append(f"{'    ' + part['kernel']:64}{cells({**part, 'us': 1e-3 * (part['ns'] or 0.0)})}")
    rates = found["rates"]
    lines.append(f"copy {1e-9 * rates['copy']:.0f} GB/s, products {2e-12 * rates['product']:.0f} TFLOP/s")
    if found["no_counters"]:
        lines.append(f"no counters: {found['no_counters']}; durations alone")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seconds", type=float, default=150.0, help="that ncu may take")

    options = script.options(__doc__, arguments, more)
    return script.run(
        "kernel counters",
        options,
        {"kernels": lambda device, faults: measure(device, faults, options.seconds)},
        table,
    )


if __name__ == "__main__":
    sys.exit(main())
