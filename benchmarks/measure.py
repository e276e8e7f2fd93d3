"""How a call is timed: in blocks for interleaved comparisons, by pytest-benchmark for the groups."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.contest import Contestant

DIRECTIONS = ("forward", "backward", "both")
SECONDS = 0.25  # that pytest-benchmark spends on one contestant in one direction


def block(contestant: Contestant, inputs: tuple[Tensor, ...], count: int) -> float:
    """Mean seconds of ``count`` forward and backward passes in a row.

    A block of several calls starts with one that is not timed, so that every contestant finds its own data in the
    cache, not its neighbour's.
    """
    call, leaf = contestant.call, inputs[0]
    with contestant.chosen():
        leaf.grad = None
        if count > 1:
            call(*inputs).backward()
        start = time.perf_counter()
        for _ in range(count):
            leaf.grad = None
            call(*inputs).backward()
        end = time.perf_counter()
    leaf.grad = None
    return (end - start) / count


def block_length(contestant: Contestant, inputs: tuple[Tensor, ...], seconds: float) -> int:
    """How many calls fill ``seconds``; at least 1."""
    count = 1
    while True:
        start, each = time.perf_counter(), math.inf
        for _ in range(3):  # one disturbance must not make blocks of a single short call
            each = min(each, block(contestant, inputs, count))
            if time.perf_counter() - start > 0.3:
                break
        if each * count >= seconds / 4:
            return max(1, round(seconds / each))
        count *= 4


def with_pytest(benchmark: Any, contestant: Contestant, inputs: tuple[Tensor, ...], direction: str) -> None:
    """Time one direction by the ``benchmark`` fixture. Forward builds the graph that backward takes down."""
    call, leaf = contestant.call, inputs[0]
    wait = torch.cuda.synchronize if leaf.is_cuda else _nothing

    def forward() -> None:
        call(*inputs)
        wait()

    def both() -> None:
        leaf.grad = None
        call(*inputs).backward()
        wait()

    def backward(value: Tensor) -> None:
        value.backward()
        wait()

    def fresh_graph() -> tuple[tuple[Tensor], dict[str, Any]]:
        leaf.grad = None
        value = call(*inputs)
        wait()
        return (value,), {}

    with contestant.chosen():
        if direction == "backward":
            arguments, _ = fresh_graph()
            start = time.perf_counter()
            backward(*arguments)
            rounds = min(max(int(SECONDS / (time.perf_counter() - start)), 5), 500)
            benchmark.pedantic(backward, setup=fresh_graph, rounds=rounds, warmup_rounds=1)
        else:
            benchmark(forward if direction == "forward" else both)
            benchmark.extra_info["peak_bytes"] = peak_bytes(forward if direction == "forward" else both, leaf)
    leaf.grad = None


def peak_bytes(call: Any, leaf: Tensor) -> int:
    """The most memory that a call holds at a time, beyond what was there before."""
    leaf.grad = None
    if leaf.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    changes = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _nothing() -> None:
    pass
