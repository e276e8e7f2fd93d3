"""A yardstick: fewest bytes and exponentials of a KL case, at the rates of PyTorch's copy and exp in the same run.

Bytes are counted in passes over one tensor of logits. ``floor``: student and teacher read once, the gradient written,
3 passes and one exponential a logit. ``recompute``: a backward pass that comes later has to read both again, 5 passes
and two exponentials a logit; that is the least work that a loss under autograd can do, and what is printed. A share
above 1 means exponentials faster than ``torch.exp``, or a copy that was disturbed. The distillation loss takes one more
exponential of the student's logits in either direction, at temperature 1.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.cases import Case

FLOOR_PASSES, RECOMPUTE_PASSES = 3, 5
SMALLEST = 1 << 20  # bytes; below it a copy measures its own launch


class Rates(NamedTuple):
    """Of this machine, now, with the threads in use."""

    copy: float  # bytes a second, read and written ones together, on tensors of the case's size
    exponential: float  # fp32 results a second, out of the cache


class Limit(NamedTuple):
    """Of forward + backward of one case."""

    bytes: int
    exponentials: int
    seconds: float
    bound: str  # "memory" or "exponentials"

    def share(self, seconds: float) -> float:
        """Limit over achieved: 1 is as fast as PyTorch's copy or exp alone."""
        return self.seconds / seconds


def rates(case: Case, device: str = "cpu") -> Rates:
    """Measure a copy of a tensor of the case's size, and ``torch.exp`` in place of its input."""
    size = max(case.rows * case.classes * case.dtype.itemsize, SMALLEST)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    small = torch.zeros(SMALLEST // 8, device=device)
    result = torch.empty_like(small)
    copied = _fastest(lambda: target.copy_(source), device)
    raised = _fastest(lambda: torch.exp(small, out=result), device)
    return Rates(2 * source.nbytes / copied, small.numel() / raised)


def limit(case: Case, rates: Rates) -> Limit:
    """The least time of forward and backward under autograd: the slower of memory and arithmetic, fully overlapped."""
    logits = case.rows * case.classes
    moved = RECOMPUTE_PASSES * logits * case.dtype.itemsize
    exponentials = (4 if case.operation == "kl_div" else 6) * logits
    memory, arithmetic = moved / rates.copy, exponentials / rates.exponential
    bound = "memory" if memory >= arithmetic else "exponentials"
    return Limit(moved, exponentials, max(memory, arithmetic), bound)


def passes(case: Case, rates: Rates, seconds: float) -> float:
    """``seconds`` in passes over one tensor of logits at the copy rate."""
    return seconds * rates.copy / (case.rows * case.classes * case.dtype.itemsize)


def _fastest(call: Callable[[], object], device: str) -> float:
    """Seconds of a call: median of the faster half of 20 blocks, as a limit is not what disturbances make of it."""
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    start = time.perf_counter()
    call()
    wait()
    count = max(1, int(2e-3 / (time.perf_counter() - start)))
    blocks = []
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        blocks.append((time.perf_counter() - start) / count)
    return statistics.median(sorted(blocks)[:10])
