"""Means over seeds with their intervals, and methods compared seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as student_t

LEVEL = 0.95
FEWEST = 3  # seeds of an interval or a test
# Values of float32 networks: what differs by less than this share of the largest value is rounding, no spread.
_ROUNDING = 2e-7

NOTHING, SINGLE, EQUAL = "not measured", "a single seed has no spread", "all values are equal: no spread to judge by"
FEW = f"fewer than {FEWEST} seeds: no interval"


def describe(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, sample standard deviation, 95 % t interval and number of the values that are known.

    The interval is mean ± t(0.975, n − 1) sd/√n, of :data:`FEWEST` values at least: of two it is thirteen times as
    wide as their distance. What cannot be computed is None, and ``reason`` says why.

    Args:
        values: One for every seed, None where it is missing.

    Example:
        >>> from amkd_fast.distill.report.statistics import describe
        >>> found = describe([1.0, 2.0, 3.0])
        >>> found["mean"], found["sd"], round(found["low"], 3), round(found["high"], 3), found["n"]
        (2.0, 1.0, -0.484, 4.484, 3)
        >>> describe([7.0])["reason"]
        'a single seed has no spread'
    """
    known = [value for value in values if value is not None]
    found: dict[str, Any] = {"mean": None, "sd": None, "low": None, "high": None, "n": len(known), "reason": None}
    if not known:
        return {**found, "reason": NOTHING}
    found["mean"] = mean = statistics.fmean(known)
    if len(known) == 1:
        return {**found, "reason": SINGLE}
    found["sd"] = deviation = statistics.stdev(known)
    if deviation <= _ROUNDING * max(map(abs, known)):
        return {**found, "reason": EQUAL}
    if len(known) < FEWEST:
        return {**found, "reason": FEW}
    half = float(student_t.ppf(0.5 + LEVEL / 2.0, len(known) - 1)) * deviation / math.sqrt(len(known))
    return {**found, "low": mean - half, "high": mean + half}


def paired(method: Mapping[int, float | None], baseline: Mapping[int, float | None]) -> dict[str, Any]:
    """Method minus baseline over the seeds that both have, with the two-sided p of the paired t-test.

    Args:
        method: Values by seed.
        baseline: Likewise.

    Returns:
        The numbers of :func:`describe` for the differences, ``p``, and ``differences`` by seed.
    """
    both = {
        seed: (own, other)
        for seed, own in method.items()
        if own is not None and (other := baseline.get(seed)) is not None
    }
    differences = {seed: own - other for seed, (own, other) in both.items()}
    found = {**describe(list(differences.values())), "p": None}
    scale = max((abs(value) for pair in both.values() for value in pair), default=0.0)
    if found["sd"] is not None and found["sd"] <= _ROUNDING * scale:
        found.update(low=None, high=None, reason=EQUAL)
    elif found["reason"] is None:
        score = abs(found["mean"]) / (found["sd"] / math.sqrt(found["n"]))
        found["p"] = 2.0 * float(student_t.sf(score, found["n"] - 1))
    return {**found, "differences": differences}


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number by Holm's step-down method; None stays None and is not counted.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6, 1979.

    Example:
        >>> from amkd_fast.distill.report.statistics import holm
        >>> holm([0.01, 0.04, None, 0.03])
        [0.03, 0.06, None, 0.06]
    """
    order = sorted((value, place) for place, value in enumerate(values) if value is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (value, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * value))
        corrected[place] = highest
    return corrected


def pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """(method, baseline): every method against ``kd`` and ``amkd`` against every ``bss-*``, of those that there are."""
    found = [(method, "kd") for method in methods if "kd" in methods and method != "kd"]
    return found + [("amkd", method) for method in methods if "amkd" in methods and method.startswith("bss-")]
