"""What the device ran for a call, by PyTorch's profiler."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import whole_attack

NETWORK = "attack: network"
WARM_UP = 3


def trace(call: Callable[[], object], device: str) -> profile:
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


def on_device(profiler: profile) -> list[Any]:
    """Kernels, copies and fills in the order in which they began."""
    events = profiler.profiler.kineto_results.events()
    found = [e for e in events if e.device_type() == torch.autograd.DeviceType.CUDA and not e.is_user_annotation()]
    return sorted(found, key=lambda event: event.start_ns())


def launches(call: Callable[[], object], device: str) -> int | None:
    """Kernels, copies and fills of one call; None on a CPU."""
    return len(on_device(trace(call, device))) if device == "cuda" else None


def outside_share(attack: Callable[[], object], device: str = "cuda") -> dict[str, float]:
    """Share of the device time of an attack's kernels that were not launched inside the network's passes."""

    def ranged(function: Callable, arguments: tuple, options: dict) -> Any:
        with record_function(NETWORK):
            return function(*arguments, **options)

    with whole_attack.network_passes(ranged):
        profiler = trace(attack, device)
    return split(profiler.profiler.kineto_results.events())


def split(events: list[Any]) -> dict[str, float]:
    """Sort kernels by whether their launch, on whichever thread, fell into a range of the network.

    A backward pass launches from autograd's own thread while the caller waits for it, so ranges are compared by time.
    """
    there = [event for event in events if event.device_type() == torch.autograd.DeviceType.CUDA]
    on_host = [event for event in events if event.device_type() == torch.autograd.DeviceType.CPU]
    ranges = sorted((e.start_ns(), e.start_ns() + e.duration_ns()) for e in on_host if e.name() == NETWORK)
    begins = [begin for begin, _ in ranges]
    launched = {e.correlation_id(): e.start_ns() for e in on_host if e.name().startswith(("cuda", "cu"))}
    total = inside = unknown = 0
    for kernel in there:
        if kernel.name() == NETWORK:  # the range itself, as the device saw it
            continue
        total += kernel.duration_ns()
        start = launched.get(kernel.correlation_id())
        if start is None:
            unknown += kernel.duration_ns()
            continue
        number = bisect_right(begins, start) - 1
        if number >= 0 and start <= ranges[number][1]:
            inside += kernel.duration_ns()
    known = max(total - unknown, 1)
    return {"share": 1.0 - inside / known, "kernels_us": total / 1e3, "unknown": unknown / max(total, 1)}
