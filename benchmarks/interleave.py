"""Contestants take turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from typing import Any, NamedTuple

from benchmarks.contest import Contestant
from benchmarks.measure import block


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


def interleave(
    entries: list[Contestant],
    inputs: tuple[Any, ...],
    lengths: dict[Contestant, int],
    patience: Patience,
    direction: str = "both",
) -> dict[Contestant, list[float]]:
    """Seconds of one call for every contestant, a value a round, in an order that changes every round."""
    times: dict[Contestant, list[float]] = {entry: [] for entry in entries}
    order, shuffle = list(entries), random.Random(0).shuffle
    start, done = time.perf_counter(), 0
    while not patience.enough(done, time.perf_counter() - start):
        shuffle(order)
        for entry in order:
            times[entry].append(block(entry, inputs, lengths[entry], direction))
        done += 1
    return times


def spread(values: list[float], unit: float = 1.0) -> dict[str, float]:
    """Median and the 10th and 90th percentile, times ``unit``."""
    low, *_, high = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": unit * statistics.median(values), "p10": unit * low, "p90": unit * high}


def ratio(theirs: list[float], mine: list[float]) -> dict[str, float]:
    """Of the medians, with the spread of the ratio within a round."""
    paired = spread([b / a for a, b in zip(mine, theirs, strict=True)])
    return {**paired, "median": statistics.median(theirs) / statistics.median(mine)}
