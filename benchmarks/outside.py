"""What share of an attack is not the network's: of its time on a CPU, of its kernels' time on a GPU."""

from __future__ import annotations

import statistics
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.whole_attack import network_passes

NETWORK = "attack: network"


def time_share(attack: Callable[[], object], times: int) -> dict[str, float]:
    """Share of an attack's time on a CPU that is not inside the network; median and extremes over ``times`` runs."""
    inside = 0.0

    def timed(function: Callable, arguments: tuple, options: dict) -> Any:
        nonlocal inside
        start = time.perf_counter()
        result = function(*arguments, **options)
        inside += time.perf_counter() - start
        return result

    shares, totals = [], []
    attack()
    with network_passes(timed):
        for _ in range(times):
            inside, start = 0.0, time.perf_counter()
            attack()
            totals.append(time.perf_counter() - start)
            shares.append(1.0 - inside / totals[-1])
    total, share = statistics.median(totals), statistics.median(shares)
    return {
        "ms": 1e3 * total,
        "outside_ms": 1e3 * share * total,
        "share": share,
        "share_least": min(shares),
        "share_most": max(shares),
    }


def kernel_share(attack: Callable[[], object]) -> dict[str, float]:
    """Share of the device time of all kernels that were not launched inside the network's passes."""

    def ranged(function: Callable, arguments: tuple, options: dict) -> Any:
        with record_function(NETWORK):
            return function(*arguments, **options)

    with network_passes(ranged):
        attack()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            attack()
            torch.cuda.synchronize()
    return split_kernels(profiler.profiler.kineto_results.events())


def split_kernels(events: list[Any]) -> dict[str, float]:
    """Sort kernels by whether their launch, on whichever thread, fell into a range of the network.

    A backward pass launches from autograd's own thread while the caller waits for it, so ranges are compared by time.
    """
    on_device = [event for event in events if event.device_type() == torch.autograd.DeviceType.CUDA]
    on_host = [event for event in events if event.device_type() == torch.autograd.DeviceType.CPU]
    ranges = sorted((e.start_ns(), e.start_ns() + e.duration_ns()) for e in on_host if e.name() == NETWORK)
    begins = [begin for begin, _ in ranges]
    launched = {e.correlation_id(): e.start_ns() for e in on_host if e.name().startswith(("cuda", "cu"))}
    total = inside = unknown = 0
    for kernel in on_device:
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
