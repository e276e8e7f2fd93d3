"""What share of an attack is not the network's: of its time on a CPU, of its kernels' time on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from amkd_fast.attacks import loop

NETWORK = "attack: network"


@contextmanager
def network_passes(around: Callable[[Callable, tuple, dict], Any]) -> Iterator[None]:
    """Send every forward and backward pass that the attacks make through ``around(function, arguments, options)``."""

    def wrap(function: Callable) -> Callable:
        return lambda *arguments, **options: around(function, arguments, options)

    names = ("evaluate", "input_gradient")
    with mock.patch.multiple(loop, **{name: wrap(getattr(loop, name)) for name in names}):
        yield


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
    found = {"ms": 1e3 * total, "outside_ms": 1e3 * share * total, "share": share}
    return {**found, "share_least": min(shares), "share_most": max(shares)}


def kernel_share(attack: Callable[[], object]) -> dict[str, float]:
    """Share of the device time of all kernels that were not launched inside the network's passes.

    A backward pass launches from autograd's own thread while the caller waits for it, so launches are sorted into the
    ranges of the network by time.
    """

    def ranged(function: Callable, arguments: tuple, options: dict) -> Any:
        with record_function(NETWORK):
            return function(*arguments, **options)

    with network_passes(ranged):
        attack()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            attack()
            torch.cuda.synchronize()
    events = profiler.profiler.kineto_results.events()
    on_device = [e for e in events if e.device_type() == torch.autograd.DeviceType.CUDA and e.name() != NETWORK]
    on_host = [e for e in events if e.device_type() == torch.autograd.DeviceType.CPU]
    ranges = [range(e.start_ns(), e.start_ns() + e.duration_ns()) for e in on_host if e.name() == NETWORK]
    launched = {e.correlation_id(): e.start_ns() for e in on_host if e.name().startswith(("cuda", "cu"))}
    known = [e for e in on_device if e.correlation_id() in launched]
    inside = [e for e in known if any(launched[e.correlation_id()] in passed for passed in ranges)]
    total, of_known, of_inside = (sum(e.duration_ns() for e in kernels) for kernels in (on_device, known, inside))
    share, unknown = 1.0 - of_inside / max(of_known, 1), 1.0 - of_known / max(total, 1)
    return {"share": share, "kernels_us": total / 1e3, "unknown": unknown}
