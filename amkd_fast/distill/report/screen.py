"""The tables that ``amkd-distill compare`` prints: at most 80 columns for the usual names."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from amkd_fast.distill.report.tables import chance

WIDEST = 100


def show(result: dict[str, Any]) -> None:
    """Print the methods and, with more than one seed, their differences in accuracy.

    Args:
        result: What goes to results.json.
    """
    console = Console()
    console = Console(width=min(console.width, WIDEST))
    console.print(_methods(result))
    tests = [test for test in result["tests"] if test["quality"] == "accuracy" and test["n"] > 1]
    if tests:
        console.print(_tests(tests))


def _methods(result: dict[str, Any]) -> Table:
    methods = result["methods"]
    seeds = max(len(found["last"]["values"]) for found in methods.values())
    plural = "seed" if seeds == 1 else "seeds"
    title = f"{seeds} {plural}; teacher {result['teacher_accuracy']:.1f}; all but ms/step in %"
    view = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    view.add_column("method", overflow="fold")
    for heading in ("last epoch", "best*", "PGD", "ECE", "agreement", "ms/step"):
        view.add_column(heading, justify="right", no_wrap=True)
    for method, found in methods.items():
        qualities = [found["qualities"][name]["mean"] for name in ("pgd_accuracy", "ece", "agreement")]
        numbers = (found["best"]["mean"], *qualities, found["ms_per_step"])
        view.add_row(Text(method), _accuracy(found), *(_number(number) for number in numbers))
    chosen_on = result.get("chosen_on", "the test set")
    view.caption = f"last epoch: test accuracy, ± half the 95 % interval over the seeds\n* chosen on {chosen_on}"
    return view


def _tests(tests: list[dict[str, Any]]) -> Table:
    view = Table(title="Differences in test accuracy, last epoch, seed by seed", box=box.SIMPLE_HEAD, pad_edge=False)
    view.add_column("comparison", overflow="fold")
    for heading in ("difference", "95 % interval", "p", "p (Holm)"):
        view.add_column(heading, justify="right", no_wrap=True)
    for test in tests:
        ends = "–" if test["low"] is None else f"{test['low']:+.2f} to {test['high']:+.2f}"
        name = Text(f"{test['method']} − {test['baseline']}")
        view.add_row(name, f"{test['mean']:+.2f}", ends, chance(test["p"]), chance(test["p_holm"]))
    view.caption = f"paired t-tests; Holm over the {len(tests)} rows; all qualities: report.html"
    return view


def _accuracy(found: dict[str, Any]) -> str:
    numbers, lost = found["last"], len(found["diverged"])
    if numbers["n"] == 0 and lost:
        return "diverged"
    half = "" if numbers["low"] is None else f" ± {numbers['high'] - numbers['mean']:.1f}"
    return _number(numbers["mean"]) + half + (f", {lost} diverged" if lost else "")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
