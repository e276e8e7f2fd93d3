"""What the runs of a comparison come to, method by method and pair by pair."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from amkd_fast.distill.fit import Run
from amkd_fast.distill.metrics import EVERY, METRICS
from amkd_fast.distill.report.statistics import describe, holm, paired, pairs

Runs = dict[tuple[str, int], Run]


def measured(runs: Runs) -> list[str]:
    """Names of the qualities that a comparison tells: those of every comparison, and what else its runs have."""
    others = [name for run in runs.values() for name in run.qualities or () if name not in METRICS]
    return [*METRICS, *(name for name in EVERY if name in others)]


def summarise(runs: Runs) -> dict[str, dict[str, Any]]:
    """For each method: accuracies and qualities over the seeds, attack counts over all steps, time.

    Args:
        runs: One run for every (method, seed).
    """
    methods, names = dict.fromkeys(method for method, _ in runs), measured(runs)
    found = {method: {seed: run for (name, seed), run in runs.items() if name == method} for method in methods}
    return {method: _method(of_seeds, names) for method, of_seeds in found.items()}


def paired_tests(runs: Runs) -> list[dict[str, Any]]:
    """For each quality and pair: the differences seed by seed, their mean, interval and p, Holm's p over the pairs.

    Args:
        runs: One run for every (method, seed).
    """
    found = []
    compared = pairs(list(dict.fromkeys(method for method, _ in runs)))
    for quality in measured(runs):
        values = {
            name: {seed: _value(run, quality) for (method, seed), run in runs.items() if method == name}
            for name in {name for pair in compared for name in pair}
        }
        rows = [{"quality": quality, "method": a, "baseline": b, **paired(values[a], values[b])} for a, b in compared]
        for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
            found.append({**row, "p_holm": corrected})
    return found


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """:func:`describe` and the values themselves."""
    return {**describe(values), "values": list(values)}


def _method(of_seeds: dict[int, Run], names: list[str]) -> dict[str, Any]:
    runs = list(of_seeds.values())
    rows = [row for run in runs for row in run.rows]
    attacked = sum(row.get("attacked", 0) for row in rows)
    share = {
        name: sum(row.get(name, 0) for row in rows) / attacked if attacked else None
        for name in ("accepted", "crossed", "third")
    }
    attacking = [row["ms_per_step"] for row in rows if "attacked" in row]
    return {
        "last": spread([run.last for run in runs]),
        "best": spread([run.best for run in runs]),
        "diverged": {str(seed): run.diverged for seed, run in of_seeds.items() if run.diverged},
        "qualities": {quality: spread([_value(run, quality) for run in runs]) for quality in names},
        "classes": _classes([run.classes for run in runs if run.classes]),
        "attacked": attacked,
        **{f"{name}_share": value for name, value in share.items()},
        "ms_per_step": statistics.fmean(row["ms_per_step"] for row in rows) if rows else None,
        "ms_per_attacking_step": statistics.median(attacking) if attacking else None,
    }


def _classes(runs: list[list[float]]) -> list[float]:
    """Mean over the runs of each class's accuracy; empty where no run has any."""
    return [statistics.fmean(values) for values in zip(*runs, strict=True)]


def _value(run: Run, quality: str) -> float | None:
    return None if run.qualities is None else run.qualities.get(quality)
