"""One small panel a quality: the methods themselves, and their differences from the baselines; as PNG bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from amkd_fast.distill.metrics import EVERY, Metric
from amkd_fast.distill.report.plots import interval, named, points, rows
from amkd_fast.distill.report.style import colours, picture

COLUMNS = 3


@picture
def qualities(summary: dict[str, dict[str, Any]], teacher: dict[str, float | None]) -> Figure:
    """Every method's qualities after the last epoch: single seeds, mean and 95 % interval; the teacher's as a line.

    Args:
        summary: As of :func:`amkd_fast.distill.report.summary.summarise`.
        teacher: Its own qualities by name, as far as there are any.
    """

    def draw(axes: Any, quality: str) -> None:
        for place, (method, colour) in enumerate(colours(summary).items()):
            numbers = summary[method]["qualities"][quality]
            points(axes, place, numbers["values"], color=colour)
            interval(axes, place, numbers)
        if teacher.get(quality) is not None:
            axes.axvline(teacher[quality], color="black", linestyle=":", linewidth=1.2)

    handles = _handles("one seed")
    handles["teacher"] = Line2D([], [], color="black", linestyle=":", linewidth=1.2)
    measured = next(iter(summary.values()))["qualities"]
    return _grid(named(summary), measured, lambda quality: quality.heading, draw, handles)


@picture
def differences(tests: list[dict[str, Any]]) -> Figure:
    """Method minus baseline: every seed's difference, mean and 95 % interval, and the line of no difference.

    Args:
        tests: As of :func:`amkd_fast.distill.report.summary.paired_tests`.
    """
    compared = list(dict.fromkeys((test["method"], test["baseline"]) for test in tests))
    colour = colours(dict.fromkeys(method for method, _ in compared))

    def draw(axes: Any, quality: str) -> None:
        for test in tests:
            if test["quality"] == quality:
                place = compared.index((test["method"], test["baseline"]))
                points(axes, place, list(test["differences"].values()), color=colour[test["method"]])
                interval(axes, place, test)
        axes.axvline(0.0, color="black", linewidth=1.0)

    names = [f"{method} − {baseline}" for method, baseline in compared]
    measured = dict.fromkeys(test["quality"] for test in tests)
    handles = _handles("one seed's difference")
    return _grid(names, measured, lambda quality: quality.heading_of_differences, draw, handles)


def _grid(
    names: list[str],
    measured: Iterable[str],
    heading: Callable[[Metric], str],
    draw: Callable[[Any, str], None],
    handles: dict[str, Line2D],
) -> Figure:
    shown = [(name, EVERY[name]) for name in measured]
    lines = len(shown) // COLUMNS + 1  # one place is left for the legend
    figure = Figure(figsize=(10.0, 0.6 + lines * (0.8 + 0.27 * len(names))), layout="constrained")
    panels = figure.subplots(lines, COLUMNS, sharey=True, squeeze=False).flat
    for axes, (name, quality) in zip(panels, shown, strict=False):
        rows(axes, names)
        draw(axes, name)
        axes.set_title(f"{heading(quality)}\n({quality.better} is better)")
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    figure.axes[-1].legend(handles.values(), handles.keys(), loc="center", frameon=False)
    return figure


def _handles(point: str) -> dict[str, Line2D]:
    return {
        point: Line2D([], [], linestyle="", marker="o", color="black"),
        "mean and 95 % interval": Line2D([], [], color="black", marker="|", markersize=10, linewidth=1.2),
    }
