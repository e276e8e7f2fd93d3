"""Contestants on a device take turns until their time is up, and one that breaks is a fault and not the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from benchmarks.gpu_kl import timed

ROUNDS, LEAST, WARM_UP = 25, 5, 2


def interleaved(
    entries: dict[str, Callable[[], object]], device: str, deadline: float, faults: list[str]
) -> dict[str, list[float]]:
    """Seconds of one call, one value a round; after the deadline a few rounds must do."""
    times: dict[str, list[float]] = {}
    for name, entry in entries.items():
        try:
            for _ in range(WARM_UP):
                entry()
            times[name] = []
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    names = list(times)
    for turn in range(ROUNDS if device == "cuda" else 2):
        if turn >= LEAST and time.monotonic() > deadline:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(timed(entries[name], device))
    return times


def spread(values: list[float]) -> dict[str, float]:
    low, *_, high = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": low, "p90": high, "rounds": len(values)}
