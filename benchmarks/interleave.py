"""Contestants take turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

from benchmarks.contest import Contestant
from benchmarks.measure import block

MOST_ROUNDS = 200


def interleave(
    entries: list[Contestant], inputs: tuple[Any, ...], lengths: dict[Contestant, int], rounds: int, seconds: float
) -> dict[Contestant, list[float]]:
    """Seconds of one call for every contestant, a value a round: ``rounds``, or more for as long as ``seconds``."""
    times: dict[Contestant, list[float]] = {entry: [] for entry in entries}
    order, shuffle = list(entries), random.Random(0).shuffle
    start = time.perf_counter()
    done = 0
    while done < rounds or (done < MOST_ROUNDS and time.perf_counter() - start < seconds):
        shuffle(order)
        for entry in order:
            times[entry].append(block(entry, inputs, lengths[entry]))
        done += 1
    return times


def spread(values: list[float], name: str, unit: float) -> dict[str, float]:
    """Median and the 10th and 90th percentile."""
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    names = (f"{name}_median", f"{name}_p10", f"{name}_p90")
    return dict(zip(names, (x * unit for x in (statistics.median(values), deciles[0], deciles[-1])), strict=True))
