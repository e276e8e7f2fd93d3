"""Accuracies, losses and the attack's gaps, as PNG bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from amkd_fast.distill.fit import Run
from amkd_fast.distill.report import statistics
from amkd_fast.distill.report.curves import ACCURACY, LOGARITHMIC, LOSSES, Log, curves, losses, title, window_of
from amkd_fast.distill.report.style import colours, picture, short

FEWEST = 4  # panels; what a comparison without a neighbouring method has


@picture
def accuracy(summary: dict[str, dict[str, Any]], teacher: float) -> Figure:
    """Accuracy of every method, last epoch and best: single seeds, mean and 95 % interval; the teacher's as a line."""
    figure = Figure(figsize=(9.0, 1.7 + 0.55 * len(summary)), layout="constrained")
    axes = figure.subplots()
    for place, (method, colour) in enumerate(colours(summary).items()):
        for shift, kind, inside in ((-0.17, "last", colour), (0.17, "best", "white")):
            numbers = summary[method][kind]
            points(axes, place + shift, numbers["values"], color=inside, edgecolor=colour)
            interval(axes, place + shift, numbers)
    line = axes.axvline(teacher, color="black", linestyle=":", linewidth=1.2)
    rows(axes, named(summary))
    axes.set_xlabel("test accuracy, %")
    handles = {
        "last epoch, one seed": Line2D([], [], linestyle="", marker="o", color="black"),
        "best epoch, one seed": Line2D([], [], linestyle="", marker="o", color="black", markerfacecolor="white"),
        "mean and 95 % interval": Line2D([], [], color="black", marker="|", markersize=10, linewidth=1.2),
        f"teacher, {teacher:.1f} %": line,
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


@picture
def accuracy_curves(runs: dict[tuple[str, int], Run], teacher: float) -> Figure:
    """Test accuracy by epoch: mean over the seeds, band from the lowest to the highest; none that diverged."""
    figure = Figure(figsize=(9.0, 5.0), layout="constrained")
    axes = figure.subplots()
    handles = _draw(axes, runs, ACCURACY)
    handles[f"teacher, {teacher:.1f} %"] = axes.axhline(teacher, color="black", linestyle=":", linewidth=1.2)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy, %")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)
    return figure


@picture
def loss_curves(runs: dict[tuple[str, int], Run]) -> Figure:
    """Each part of the loss by epoch: mean over the seeds, band from the lowest to the highest; none that diverged.

    Every seed's losses are averaged over some epochs (:func:`.curves.window_of`).
    """
    known = losses(_logs(runs))
    shown = [*(part for place, part in enumerate(LOSSES) if place < FEWEST or part in known)]
    shown += [part for part in known if part not in LOSSES]
    columns = 2 if len(shown) == FEWEST else 3
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(4.5 * columns, 1.0 + 2.9 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True).flat
    window = window_of(_logs(runs))
    handles: dict[str, Line2D] = {}
    for axes, part in zip(panels, shown, strict=False):
        handles |= _draw(axes, runs, part, window)
        axes.set_title(title(part))
        axes.grid(alpha=0.3)
        if part in LOGARITHMIC and any((line.get_ydata() > 0.0).any() for line in axes.lines):
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100.0 * low else (1.0,)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if not axes.lines:
            axes.text(0.5, 0.5, "no method has this term", ha="center", va="center", transform=axes.transAxes)
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel("epoch", fontsize=10)
    over = "the epoch's batches" if window == 1 else f"the batches of {window} epochs"
    figure.supylabel(f"training loss (unweighted, mean over {over})", fontsize=10)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _draw(axes: Any, runs: dict[tuple[str, int], Run], name: str, window: int = 1) -> dict[str, Line2D]:
    """Draw the curves of a column of the log; return the lines by what they are called."""
    methods = list(dict.fromkeys(method for method, _ in runs))
    tones, handles = colours(methods), {}
    for curve in curves(_logs(runs), name, window):
        epochs, colour = np.arange(1, len(curve.mean) + 1), tones[curve.method]
        diverged = [bool(run.diverged) for (method, _), run in runs.items() if method == curve.method]
        label = short(curve.method) + lost(sum(diverged), len(diverged))
        (handles[label],) = axes.plot(epochs, curve.mean, color=colour, linewidth=1.6)
        axes.fill_between(epochs, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    return handles


def _logs(runs: dict[tuple[str, int], Run]) -> list[Log]:
    return [(method, run.rows) for (method, _), run in runs.items() if not run.diverged]


@picture
def gaps(quartiles: dict[str, dict[str, Any]]) -> Figure:
    """The attack's gap after every step: median and quartile band, one line a preset; the end after refinement."""
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    if not quartiles:
        axes.text(0.5, 0.5, "no test image was attacked", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return figure
    last = 0
    shifts = np.linspace(-0.12, 0.12, len(quartiles))
    for shift, (preset, colour) in zip(shifts, colours(quartiles).items(), strict=True):
        low, median, high = np.array(quartiles[preset]["steps"], dtype=float).T
        last = max(last, len(median) - 1)
        steps = range(len(median))
        axes.plot(steps, median, color=colour, marker="o", markersize=4, label=f"{preset}, median")
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, label="quartiles")
        low, median, high = np.array(quartiles[preset]["final"], dtype=float)
        ends = [[median - low], [high - median]]
        axes.errorbar(len(steps) + 0.5 + shift, median, yerr=ends, fmt="D", color=colour, markersize=6, capsize=4)
    axes.axhline(0.0, color="black", linewidth=1.0)
    axes.text(last + 0.6, 0.08, "decision boundary", ha="right", va="bottom", fontsize=9)
    axes.axvline(last + 0.75, color="black", linewidth=0.6, linestyle=":")
    axes.set_xticks([*range(last + 1), last + 1.5], [*map(str, range(last + 1)), "end"])
    axes.set_xlabel("attack step; «end»: what training gets, after any bisections")
    axes.set_ylabel("gap  f_base − f_target  (teacher's logits)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def named(summary: dict[str, dict[str, Any]]) -> list[str]:
    """The methods, and how many of their seeds diverged."""
    return [
        name + lost(len(found.get("diverged", ())), len(found["last"]["values"])) for name, found in summary.items()
    ]


def lost(count: int, seeds: int) -> str:
    """A remark behind a method's name."""
    return "" if count == 0 else " (diverged)" if count == seeds else f" ({count} of {seeds} diverged)"


def rows(axes: Any, names: list[str]) -> None:
    """Name the rows of a panel, the first on top."""
    axes.set_yticks(range(len(names)), [short(name, 40) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.08)


def points(axes: Any, place: float, values: list[float | None], **look: Any) -> None:
    """The single seeds of a row, a little apart."""
    jitter = np.linspace(-0.07, 0.07, len(values)) if len(values) > 1 else np.zeros(len(values))
    known = [(value, place + shift) for value, shift in zip(values, jitter, strict=True) if value is not None]
    if known:
        axes.scatter(*zip(*known, strict=True), s=22, zorder=2, **look)


def interval(axes: Any, place: float, numbers: dict[str, Any]) -> None:
    """Mean and 95 % interval of a row, as far as they are known."""
    if numbers["mean"] is None:
        return
    ends = None
    if numbers["low"] is not None and numbers["n"] >= statistics.FEWEST:
        ends = [[numbers["mean"] - numbers["low"]], [numbers["high"] - numbers["mean"]]]
    style = {"fmt": "|", "color": "black", "markersize": 13, "markeredgewidth": 1.6, "linewidth": 1.2}
    axes.errorbar(numbers["mean"], place, xerr=ends, capsize=4, zorder=3, **style)
