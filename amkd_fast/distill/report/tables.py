"""A comparison as CSV, and p-values as people read them."""

from __future__ import annotations

from typing import Any

from amkd_fast.distill.epoch_log import COLUMNS, columns, table
from amkd_fast.distill.fit import Run
from amkd_fast.distill.metrics import EVERY

EPOCHS = ("method", "seed", *COLUMNS)
SUMMARY = ("method", "quality", "unit", "mean", "sd", "low", "high", "n")


def to_csv(runs: dict[tuple[str, int], Run]) -> str:
    """One row for every method, seed and epoch."""
    rows = [{"method": method, "seed": seed, **row} for (method, seed), run in runs.items() for row in run.rows]
    return table(rows, columns(rows, EPOCHS))


def summary_csv(methods: dict[str, dict[str, Any]]) -> str:
    """One row for every method and quality; what is not known stays empty.

    Args:
        methods: As of :func:`amkd_fast.distill.report.summary.summarise`.
    """
    rows = []
    for method, found in methods.items():
        named = [("best_accuracy", "%", found["best"])]
        named += [(name, EVERY[name].unit, numbers) for name, numbers in found["qualities"].items()]
        for quality, unit, numbers in named:
            known = {name: numbers[name] for name in SUMMARY[3:] if numbers[name] is not None}
            rows.append({"method": method, "quality": quality, "unit": unit, **known})
    return table(rows, SUMMARY)


def worst(accuracies: list[float], classes: list[str], most: int = 3) -> list[tuple[str, float]]:
    """The classes with the lowest accuracies, the lowest first; of equal ones the first."""
    return sorted(zip(classes, accuracies, strict=True), key=lambda found: found[1])[:most]


def chance(value: float | None) -> str:
    """A p-value for a table."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
