"""The most memory that a call holds at a time, beyond what was there before."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Bytes of the peak of a call that has run before, so that what stays is there.

    On a CPU the larger of two figures: the tensors' peak by PyTorch's profiler, and the rise of the resident set's
    high-water mark, which also counts the kernels' own scratch but nothing that fits into pages left from before.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return max(_tensors(call), _resident(call) if _CLEAR.exists() else 0)


def _tensors(call: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    changes = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in changes), initial=0))


def _resident(call: Callable[[], object]) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back, so that taking it again shows
    _CLEAR.write_text("5")  # the mark falls to what is resident now
    before = _high_water()
    call()
    return max(_high_water() - before, 0)


def _high_water() -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])
