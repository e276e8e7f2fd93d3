"""How a call is timed: in blocks for interleaved comparisons, by pytest-benchmark for the groups."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Contestant

DIRECTIONS = ("forward", "backward", "both")
SECONDS = 0.25  # that pytest-benchmark spends on one contestant in one direction
GRAPHS, ROOM = 16, 1 << 30  # of calls whose backward passes follow one another on a GPU; bytes of their leaves together


def block(contestant: Contestant, inputs: tuple[Any, ...], count: int, direction: str = "both") -> float:
    """Mean seconds of ``count`` calls in a row.

    A block of several calls starts with one that is not timed, so that every contestant finds its own data in the
    cache, not its neighbour's. On a GPU the calls queue up and the clock stops when the last is done.
    """
    passes = {"forward": _forward, "backward": _backward, "both": _both}[direction]
    leaf = inputs[0] if isinstance(inputs[0], Tensor) else None
    wait = torch.cuda.synchronize if leaf is not None and leaf.is_cuda else _nothing
    with contestant.chosen():
        if count > 1:
            passes(contestant.call, inputs, 1, wait)
        seconds = passes(contestant.call, inputs, count, wait)
    if leaf is not None and leaf.requires_grad:
        leaf.grad = None
    return seconds / count


def block_length(contestant: Contestant, inputs: tuple[Any, ...], seconds: float, direction: str = "both") -> int:
    """How many calls fill ``seconds``; at least 1."""
    count = 1
    while True:
        start, each = time.perf_counter(), math.inf
        for _ in range(3):  # one disturbance must not make blocks of a single short call
            each = min(each, block(contestant, inputs, count, direction))
            if time.perf_counter() - start > 0.3:
                break
        if each * count >= seconds / 4:
            return max(1, round(seconds / each))
        count *= 4


def with_pytest(benchmark: Any, contestant: Contestant, inputs: tuple[Any, ...], direction: str) -> None:
    """Time one direction by the ``benchmark`` fixture. Forward builds the graph that backward takes down."""
    call, leaf = contestant.call, inputs[0]
    wait = torch.cuda.synchronize if isinstance(leaf, Tensor) and leaf.is_cuda else _nothing

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


def _forward(call: Callable[..., Any], inputs: tuple[Any, ...], count: int, wait: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(count):
        call(*inputs)
    wait()
    return time.perf_counter() - start


def _both(call: Callable[..., Any], inputs: tuple[Any, ...], count: int, wait: Callable[[], None]) -> float:
    leaf = inputs[0]
    wait()
    start = time.perf_counter()
    for _ in range(count):
        leaf.grad = None
        call(*inputs).backward()
    wait()
    return time.perf_counter() - start


def _backward(call: Callable[..., Any], inputs: tuple[Any, ...], count: int, wait: Callable[[], None]) -> float:
    """Of graphs that are there already: one at a time on a CPU, where they share its cache; some in a row on a GPU."""
    leaf = inputs[0]
    together = max(1, min(GRAPHS, ROOM // leaf.nbytes)) if leaf.is_cuda else 1
    seconds, left = 0.0, count
    while left:
        values = [call(*inputs) for _ in range(min(together, left))]
        left -= len(values)
        wait()
        start = time.perf_counter()
        for value in values:
            leaf.grad = None
            value.backward()
        wait()
        seconds += time.perf_counter() - start
    return seconds


def _nothing() -> None:
    pass
