"""GPU profile: what the device does meanwhile: ``python -m benchmarks.gpu.profile [--out FILE] [--dry-run]``.

Headline kernels and training steps under PyTorch's profiler: the device's time beside the limit of the work, the gaps
in which it has nothing to do, its kernels, and the host's time. Nsight Compute counts what they move, if it may:
``ncu --profile-from-start off python -m benchmarks.gpu.profile`` sees one call of each headline kernel and backend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from amkd_fast import backends
from benchmarks import contest, roofline, training_case
from benchmarks.gpu import calls, script

WARM_UP = 3
GAP = 1_000  # nanoseconds; a shorter one is how kernels follow one another
SHOWN = 4  # kernels of a row, those that take longest


class Span(NamedTuple):
    """A kernel, copy or fill on the device, in nanoseconds."""

    name: str
    start: int
    end: int


def traced(call: Callable[[], object], device: str) -> profile:
    """One call, warmed up; the device is done when this returns."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for _ in range(WARM_UP):
        call()
    wait()
    with profile(activities=activities) as profiler:
        call()
        wait()
    return profiler


def on_device(profiler: profile) -> list[Span]:
    """Kernels, copies and fills."""
    events = profiler.profiler.kineto_results.events()
    found = [e for e in events if e.device_type() == torch.autograd.DeviceType.CUDA and not e.is_user_annotation()]
    return [Span(e.name(), e.start_ns(), e.end_ns()) for e in found]


def on_host(profiler: profile) -> int:
    """Nanoseconds from the first to the last that the host did, but for the wait at the end."""
    events = profiler.profiler.kineto_results.events()
    found = [e for e in events if e.device_type() == torch.autograd.DeviceType.CPU and "Synchronize" not in e.name()]
    return max(e.end_ns() for e in found) - min(e.start_ns() for e in found)


def summary(spans: Iterable[Span], host: int) -> dict[str, Any]:
    """Busy and idle in µs, and the kernels. Those that overlap count once in what is busy."""
    kernels: dict[str, float] = {}
    ordered, gaps, busy, until = sorted(spans, key=lambda span: span.start), [], 0, None
    for span in ordered:
        kernels[span.name] = kernels.get(span.name, 0.0) + 1e-3 * (span.end - span.start)
        if until is not None and span.start - until > GAP:
            gaps.append(span.start - until)
        busy += max(0, span.end - max(span.start, until or span.start))
        until = max(until or span.end, span.end)
    whole = until - ordered[0].start if ordered else 0
    return {
        **{"device_us": 1e-3 * whole, "busy_us": 1e-3 * busy, "idle_share": (whole - busy) / whole if whole else None},
        **{"gaps": len(gaps), "longest_gap_us": 1e-3 * max(gaps, default=0), "launches": len(ordered)},
        **{"host_us": 1e-3 * host, "kernels": dict(sorted(kernels.items(), key=lambda item: -item[1]))},
    }


def headline(device: str, faults: list[str]) -> list[dict[str, Any]]:
    """One row a call and backend; between cudaProfilerStart and cudaProfilerStop it is called once more."""
    rows = []
    for call in calls.headline() if device == "cuda" else calls.rehearsal():
        limit = roofline.limit(call.work, call.group.dtype, device)
        for name in contest.backend_names(call.group.family, device):
            with script.caught(f"{name} {call}", faults), backends.backend(name):
                once = call.make(device)
                profiler = traced(once, device)
                found = summary(on_device(profiler), on_host(profiler))
                limits = {"limit_us": 1e6 * limit.seconds, "bound": limit.bound}
                rows.append({"call": f"{call}, {name}", **limits, **found})
                if device == "cuda":
                    torch.cuda.cudart().cudaProfilerStart()
                    once()
                    torch.cuda.synchronize()
                    torch.cuda.cudart().cudaProfilerStop()
                del once
    return rows


def steps(device: str, faults: list[str]) -> list[dict[str, Any]]:
    """One row a method and way to take its step."""
    case = training_case.of_environment(device) if device == "cuda" else training_case.rehearsal()
    rows = []
    for method in ("KD", "AMKD"):
        for kind in ("fixed_shape", "recorded"):
            with script.caught(f"{method}, {kind}", faults):
                profiler = traced(training_case.step(case, method, kind), device)
                rows.append({"call": f"step {method}, {kind}", **summary(on_device(profiler), on_host(profiler))})
    return rows


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{'call':72}{'busy µs':>10}{'limit':>10}{'idle':>6}{'gaps':>6}{'launches':>9}{'host µs':>10}  kernels, µs"
    ]
    for row in (*report.get("headline", ()), *report.get("steps", ())):
        limit = f"{row['limit_us']:.1f}" if "limit_us" in row else "-"
        idle = "-" if row["idle_share"] is None else f"{row['idle_share']:.0%}"
        kernels = ", ".join(f"{name[:40]} {us:.1f}" for name, us in list(row["kernels"].items())[:SHOWN])
        counts = f"{idle:>6}{row['gaps']:6}{row['launches']:9}{row['host_us']:10.0f}"
        lines.append(f"{row['call']:72}{row['busy_us']:10.1f}{limit:>10}{counts}  {kernels}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    return script.run(__doc__, arguments, {"headline": headline, "steps": steps}, table)


if __name__ == "__main__":
    sys.exit(main())
