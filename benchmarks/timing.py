"""How calls are timed: contestants take turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from benchmarks.contest import Contestant, drop_grads, leaves

GRAPHS, ROOM = 16, 1 << 30  # of calls whose backward passes follow one another on a GPU; bytes of their leaves together


class Patience(NamedTuple):
    """How long contestants take turns."""

    block: float = 7e-3  # seconds of a contestant's turn
    rounds: int = 21  # at least
    seconds: float = 2.0  # more rounds for as long as this lasts
    most: float = 15.0  # seconds after which the fewest rounds must do
    fewest: int = 5

    def enough(self, done: int, seconds: float) -> bool:
        if done < self.fewest:
            return False
        return seconds >= self.most or (done >= self.rounds and seconds >= self.seconds)


QUICK = Patience(block=1e-3, rounds=2, seconds=0.0, most=0.0, fewest=2)


class Rounds(NamedTuple):
    """Seconds of a call, one value a round and contestant; calls that make up a contestant's turn."""

    seconds: dict[Contestant, list[float]]
    calls: dict[Contestant, int]


def interleave(entries: list[Contestant], inputs: tuple[Any, ...], patience: Patience, direction: str) -> Rounds:
    """Blocks of every contestant in an order that changes every round, without the garbage collector."""
    seconds: dict[Contestant, list[float]] = {entry: [] for entry in entries}
    order, shuffle = list(entries), random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        calls = {entry: block_length(entry, inputs, patience.block, direction) for entry in entries}
        start, done = time.perf_counter(), 0
        while not patience.enough(done, time.perf_counter() - start):
            shuffle(order)
            for entry in order:
                seconds[entry].append(block(entry, inputs, calls[entry], direction))
            done += 1
    finally:
        gc.enable()
    return Rounds(seconds, calls)


def spread(values: list[float], unit: float = 1.0) -> dict[str, float]:
    """Median and the 10th and 90th percentile, times ``unit``."""
    low, *_, high = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": unit * statistics.median(values), "p10": unit * low, "p90": unit * high}


def ratio(theirs: list[float], mine: list[float]) -> dict[str, float]:
    """Of the medians, with the spread of the ratio within a round."""
    paired = spread([b / a for a, b in zip(mine, theirs, strict=True)])
    return {**paired, "median": statistics.median(theirs) / statistics.median(mine)}


def inverse(found: dict[str, float]) -> dict[str, float]:
    """Of ours over theirs instead."""
    return {"median": 1 / found["median"], "p10": 1 / found["p90"], "p90": 1 / found["p10"]}


def block(entry: Contestant, inputs: tuple[Any, ...], count: int, direction: str = "both") -> float:
    """Mean seconds of ``count`` calls in a row.

    A block of several calls starts with one that is not timed, so that every contestant finds its own data in the
    cache, not its neighbour's. On a GPU the calls queue up and the clock stops when the last is done.
    """
    passes = {"forward": _forward, "backward": _backward, "both": _both}[direction]
    wait = torch.cuda.synchronize if getattr(inputs[0], "is_cuda", False) else (lambda: None)
    with entry.chosen():
        if count > 1:
            passes(entry.call, inputs, 1, wait)
        seconds = passes(entry.call, inputs, count, wait)
    drop_grads(inputs)
    return seconds / count


def block_length(entry: Contestant, inputs: tuple[Any, ...], seconds: float, direction: str = "both") -> int:
    """How many calls fill ``seconds``; at least 1."""
    count = 1
    while True:
        start, each = time.perf_counter(), math.inf
        for _ in range(3):  # one disturbance must not make blocks of a single short call
            each = min(each, block(entry, inputs, count, direction))
            if time.perf_counter() - start > 0.3:
                break
        if each * count >= seconds / 4:
            return max(1, round(seconds / each))
        count *= 4


def _forward(call: Callable[..., Any], inputs: tuple[Any, ...], count: int, wait: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(count):
        call(*inputs)
    wait()
    return time.perf_counter() - start


def _both(call: Callable[..., Any], inputs: tuple[Any, ...], count: int, wait: Callable[[], None]) -> float:
    own = leaves(inputs)

    def step(*given: Any) -> None:
        for leaf in own:
            leaf.grad = None
        call(*given).backward()

    return _forward(step, inputs, count, wait)


def _backward(call: Callable[..., Any], inputs: tuple[Any, ...], count: int, wait: Callable[[], None]) -> float:
    """Of graphs that are there already: one at a time on a CPU, where they share its cache; some in a row on a GPU."""
    own = leaves(inputs)
    together = max(1, min(GRAPHS, ROOM // sum(leaf.nbytes for leaf in own))) if own[0].is_cuda else 1
    seconds, left = 0.0, count
    while left:
        values = [call(*inputs) for _ in range(min(together, left))]
        left -= len(values)
        wait()
        start = time.perf_counter()
        for value in values:
            for leaf in own:
                leaf.grad = None
            value.backward()
        wait()
        seconds += time.perf_counter() - start
    return seconds
