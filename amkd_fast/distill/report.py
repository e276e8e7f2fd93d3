"""What a comparison found, as numbers: summary, JSON, CSV, and the table on the screen."""

from __future__ import annotations

import json
import math
import platform
import statistics
from typing import Any

import torch

from amkd_fast.distill.experiment import Run
from amkd_fast.distill.journal import COLUMNS, table
from amkd_fast.version import __version__

CSV_COLUMNS = ("method", "seed", *COLUMNS)


def summarise(runs: dict[tuple[str, int], Run]) -> dict[str, dict[str, Any]]:
    """For each method: accuracies over the seeds, attack counts over all steps, time.

    Args:
        runs: One run for every (method, seed).
    """
    methods = dict.fromkeys(method for method, _ in runs)
    return {method: _method([run for (name, _), run in runs.items() if name == method]) for method in methods}


def _method(runs: list[Run]) -> dict[str, Any]:
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
        "attacked": attacked,
        **{f"{name}_share": value for name, value in share.items()},
        "ms_per_step": statistics.fmean(row["ms_per_step"] for row in rows),
        "ms_per_attacking_step": statistics.median(attacking) if attacking else None,
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation (None for one value)."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": deviation, "values": values}


def environment() -> dict[str, Any]:
    """Where the numbers were made."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "amkd_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpu": cuda,
        "threads": torch.get_num_threads(),
    }


def to_json(result: dict[str, Any]) -> str:
    """Strict JSON: what is not a finite number becomes null."""
    return json.dumps(_finite(result), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(runs: dict[tuple[str, int], Run]) -> str:
    """One row for every method, seed and epoch."""
    rows = [{"method": method, "seed": seed, **row} for (method, seed), run in runs.items() for row in run.rows]
    return table(rows, CSV_COLUMNS)


def print_table(summary: dict[str, dict[str, Any]], teacher: float, seeds: int) -> None:
    """The table of ``amkd-distill compare``."""
    from rich.console import Console
    from rich.table import Table

    plural = "seed" if seeds == 1 else "seeds"
    view = Table(title=f"Test accuracy in %, mean ± sd over {seeds} {plural}; teacher {teacher:.1f}")
    view.add_column("method", no_wrap=True)
    for heading in ("last epoch", "best epoch*", "crossed", "accepted", "ms/step"):
        view.add_column(heading, justify="right", no_wrap=True)
    for method, numbers in summary.items():
        view.add_row(
            method,
            _with_sd(numbers["last"]),
            _with_sd(numbers["best"]),
            _percent(numbers["crossed_share"]),
            _percent(numbers["accepted_share"]),
            f"{numbers['ms_per_step']:.1f}",
        )
    view.caption = "* chosen on the test set. crossed: attacked samples that reached their target class"
    Console().print(view)


def _with_sd(numbers: dict[str, Any]) -> str:
    return f"{numbers['mean']:.1f}" + ("" if numbers["sd"] is None else f" ± {numbers['sd']:.1f}")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
