"""Where the time of a training step goes: ``python -m benchmarks.gpu.timeline [--out FILE] [--trace FILE]``.

One step of KD and of AMKD, eager and recorded, under PyTorch's profiler: the device's time by groups of kernels, the
gaps in which it has nothing to do, launches, and the host's time. ``--trace`` keeps all as one Chrome trace, packed.
``--dry-run`` takes small steps on a CPU, whose operators take the place of kernels.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import profile

from benchmarks import training_case
from benchmarks.gpu import kernels, script, steps
from benchmarks.gpu.guard import caught
from benchmarks.training_case import Case

STEPS = tuple((method, way) for method in ("KD", "AMKD") for way in ("fixed_shape", "recorded"))
LAUNCH = re.compile(r"cu(da)?(Launch|GraphLaunch|Memcpy|Memset)")  # a recorded step is one of them
GAP = 1_000  # nanoseconds; a shorter one is how kernels follow one another

# The first that matches: our C++ lives in a namespace, our Triton kernels begin with their family. The operators of
# PyTorch are those of a rehearsal.
GROUPS = {
    "ours": r"amkd|^(kl|triplet|attack|images)_\w+_kernel",
    "convolutions": r"conv|cudnn|xmma|gemm|cutlass|sm90_|sm80_|nchw|nhwc|winograd|implicit|addmm|::mm|linear",
    "BatchNorm": r"batch_?norm|bn_(fw|bw)",
    "optimizer": r"multi_tensor|foreach|fused_sgd|FusedSgd",
    "copies and fills": r"memcpy|memset|copy|fill",
}


class Span(NamedTuple):
    """A kernel, copy or fill on the device, in nanoseconds."""

    name: str
    start: int
    end: int


def group_of(name: str) -> str:
    return next((group for group, rule in GROUPS.items() if re.search(rule, name, re.IGNORECASE)), "other")


def summary(spans: Iterable[Span], host: int, launches: int) -> dict[str, Any]:
    """Times by group, busy and idle, in µs. Kernels that overlap count once in what is busy, each in its group."""
    groups: dict[str, dict[str, float]] = {}
    ordered, gaps, busy, until = sorted(spans, key=lambda span: span.start), [], 0, None
    for span in ordered:
        found = groups.setdefault(group_of(span.name), {"us": 0.0, "kernels": 0})
        found["us"] += 1e-3 * (span.end - span.start)
        found["kernels"] += 1
        if until is not None and span.start - until > GAP:
            gaps.append(span.start - until)
        busy += max(0, span.end - max(span.start, until or span.start))
        until = max(until or span.end, span.end)
    whole = until - ordered[0].start if ordered else 0
    return {
        "device_us": 1e-3 * whole,
        "busy_us": 1e-3 * busy,
        "idle_us": 1e-3 * (whole - busy),
        "idle_share": (whole - busy) / whole if whole else None,
        "gaps": len(gaps),
        "longest_gap_us": 1e-3 * max(gaps, default=0),
        "kernels": len(ordered),
        "launches": launches,
        "host_us": 1e-3 * host,
        "groups": groups,
    }


def spans_of(profiler: profile, device: str) -> list[Span]:
    """On a CPU the outermost operators."""
    if device == "cuda":
        events = kernels.on_device(profiler)
        return [Span(e.name(), e.start_ns(), e.end_ns()) for e in events]
    events = profiler.profiler.kineto_results.events()
    found: list[Span] = []
    for event in sorted(events, key=lambda e: (e.start_ns(), -e.end_ns())):
        named = "::" in event.name() and not event.name().startswith("autograd::")
        if named and (not found or event.start_ns() >= found[-1].end):
            found.append(Span(event.name(), event.start_ns(), event.end_ns()))
    return found


def on_host(profiler: profile) -> tuple[int, int]:
    """Nanoseconds from the first to the last that the host did, but for the wait at the end; and its launches."""
    events = profiler.profiler.kineto_results.events()
    found = [e for e in events if e.device_type() == torch.autograd.DeviceType.CPU and "Synchronize" not in e.name()]
    launches = sum(LAUNCH.match(event.name()) is not None for event in found)
    return max(e.end_ns() for e in found) - min(e.start_ns() for e in found), launches


def measure(case: Case, traces: dict[str, Any], faults: list[str]) -> dict[str, Any]:
    """By step, its :func:`summary`; its Chrome trace goes into ``traces``."""
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, way in STEPS:
            title, path = f"{method}, {way}", Path(folder, "trace.json")
            with caught(title, faults):
                profiler = kernels.trace(steps.step(case, method, way, *next(case.batches(1))), case.device)
                rows[title] = summary(spans_of(profiler, case.device), *on_host(profiler))
                profiler.export_chrome_trace(str(path))
                traces[title] = json.loads(path.read_text())
    return rows


def joined(traces: dict[str, Any]) -> dict[str, Any]:
    """One trace with a process of its own for each step and lane, so that they stand below one another."""
    events: list[dict[str, Any]] = []
    for title, trace in traces.items():
        for event in trace["traceEvents"]:
            named = event.get("ph") == "M" and event.get("name") == "process_name"
            args = {"name": f"{title}: {event['args'].get('name', '')}"} if named else event.get("args")
            pid = f"{title}: {event.get('pid')}"
            events.append({**event, "pid": pid, **({} if args is None else {"args": args})})
    return {"traceEvents": events}


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{'step':22}{'device µs':>11}{'busy µs':>10}{'idle':>7}{'gaps':>6}{'longest':>9}{'kernels':>9}{'launches':>9}"
        f"{'host µs':>10}  device µs by kernels"
    ]
    for title, row in report.get("steps", {}).items():
        groups = sorted(row["groups"].items(), key=lambda item: -item[1]["us"])
        told = ", ".join(f"{name} {found['us']:.0f} ({found['kernels']})" for name, found in groups)
        idle = "-" if row["idle_share"] is None else f"{row['idle_share']:.0%}"
        lines.append(
            f"{title:22}{row['device_us']:11.0f}{row['busy_us']:10.0f}{idle:>7}{row['gaps']:6}"
            f"{row['longest_gap_us']:9.0f}{row['kernels']:9}{row['launches']:9}{row['host_us']:10.0f}  {told}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trace", type=Path, help="Chrome trace of all steps, gzip")

    options = script.options(__doc__, arguments, more)
    traces: dict[str, Any] = {}

    @cache
    def case(device: str) -> Case:
        return training_case.case(None, None, device)

    code = script.run(
        "training timeline",
        options,
        {
            "setting": lambda device, faults: case(device).about,
            "steps": lambda device, faults: measure(case(device), traces, faults),
        },
        table,
    )
    if options.trace:
        with gzip.open(options.trace, "wt") as file:
            json.dump(joined(traces), file)
    return code


if __name__ == "__main__":
    sys.exit(main())
