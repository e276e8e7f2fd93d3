"""What the device ran for a call, by PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

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
