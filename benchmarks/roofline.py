"""A yardstick: the least that has to be done, at rates that this machine reaches in the same run.

The least time of a call is the slowest of three things that could overlap completely: its bytes at the rate of
PyTorch's copy of tensors of that size, its operations at the rate of PyTorch's own matrix product, and its launches at
the time of PyTorch's smallest call. An exponential counts as the multiply-adds of the shortest polynomial that has
fp32's precision. A share above 1 means that ours beats PyTorch's rate, or that the yardstick was disturbed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.utils.benchmark import Timer

SMALLEST = 1 << 20  # bytes; below it a copy measures its own launch
SIDE = 1024  # of the matrices
ROWS = 8192  # of the matrices on a GPU
EXPONENTIAL = 8  # multiply-adds: two to reduce the range, five of the polynomial, one to scale


class Work(NamedTuple):
    """The least of one call in one direction."""

    bytes: int  # read and written, each tensor once
    exponentials: int = 0
    products: int = 0  # multiply-adds of matrix products
    launches: int = 1


def both_ways(forward: Work, backward: Work) -> dict[str, Work]:
    """By direction; a backward pass that comes later finds nothing of the forward one's in a cache."""
    together = Work(*(a + b for a, b in zip(forward, backward, strict=True)))
    return {"forward": forward, "backward": backward, "both": together}


class Limit(NamedTuple):
    """The least time of a call."""

    seconds: float
    bound: str  # "bytes", "operations" or "launches"
    copy: float  # bytes a second, read and written ones together
    product: float  # multiply-adds a second, of the dtype's matrix product or of fp32's where that is faster
    arithmetic: float  # multiply-adds a second in fp32
    launch: float  # seconds


def limit(work: Work, dtype: torch.dtype, device: str) -> Limit:
    """Measure the rates now, but for the matrix product's, which takes long and is kept."""
    rates = {
        "copy": copy_rate(max(work.bytes // 3, SMALLEST), device),
        "product": max(product_rate(d, device) for d in {dtype, torch.float32} if d.is_floating_point),
        "arithmetic": product_rate(torch.float32, device),
        "launch": launch_seconds(device),
    }
    parts = {
        "bytes": work.bytes / rates["copy"],
        "operations": work.products / rates["product"] + EXPONENTIAL * work.exponentials / rates["arithmetic"],
        "launches": work.launches * rates["launch"],
    }
    bound = max(parts, key=parts.get)
    return Limit(parts[bound], bound, **rates)


def copy_rate(size: int, device: str) -> float:
    """Of a tensor of ``size`` bytes into another one, both there already."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source))


@cache
def product_rate(dtype: torch.dtype, device: str) -> float:
    """Of square matrices, TF32 as the process allows it."""
    # A CPU without units for two-byte numbers multiplies them a hundred times slower.
    side = ROWS if device == "cuda" else SIDE if dtype.itemsize > 2 else SIDE // 4
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(left)
    return side**3 / _fastest(lambda: torch.mm(left, right, out=result))


def launch_seconds(device: str) -> float:
    """Of a call that changes one number."""
    one = torch.zeros(1, device=device)
    return _fastest(lambda: one.add_(1))


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of a call: median of the faster half of some blocks, as a limit is not what disturbances make of it."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    blocks = timer.blocked_autorange(min_run_time=0.1).times
    return statistics.median(sorted(blocks)[: math.ceil(len(blocks) / 2)])
