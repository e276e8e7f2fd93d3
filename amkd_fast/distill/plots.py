"""The four pictures of a comparison, as PNG bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from amkd_fast.distill.data import Data
from amkd_fast.distill.experiment import Run
from amkd_fast.distill.probe import Probe

# Colours that stay apart for colour-blind eyes (Okabe and Ito).
COLOURS = {
    "student": "#7f7f7f",
    "kd": "#0072B2",
    "bss-official": "#E69F00",
    "bss-near_boundary": "#009E73",
    "amkd": "#CC3377",
    "official": "#E69F00",
    "near_boundary": "#009E73",
}
LOSSES = {
    "ce": "cross-entropy, clean images",
    "kl": "KL to the teacher, clean images",
    "boundary": "KL to the teacher, boundary samples",
    "triplet": "triplet term",
}
SAMPLES = 6


def accuracy(runs: dict[tuple[str, int], Run], summary: dict[str, dict[str, Any]], teacher: float) -> bytes:
    """Last-epoch accuracy of every method: mean, standard deviation, single seeds; the best epoch beside it."""
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    axes = figure.subplots()
    handles = {}
    for place, (method, numbers) in enumerate(summary.items()):
        for shift, kind, filled in ((-0.17, "last", True), (0.17, "best", False)):
            values, colour = numbers[kind]["values"], COLOURS[method]
            jitter = np.linspace(-0.07, 0.07, len(values)) if len(values) > 1 else np.zeros(1)
            axes.scatter(
                place + shift + jitter, values, s=22, color=colour if filled else "white", edgecolor=colour, zorder=2
            )
            bar = axes.errorbar(
                place + shift,
                numbers[kind]["mean"],
                yerr=numbers[kind]["sd"] or 0.0,
                fmt="_",
                color="black",
                markersize=22,
                markeredgewidth=1.6,
                capsize=5,
                zorder=3,
            )
            handles[f"{kind} epoch, one seed"] = Line2D(
                [], [], linestyle="", marker="o", color="black", markerfacecolor="black" if filled else "white"
            )
        handles["mean ± sd"] = bar
    handles[f"teacher, {teacher:.1f} %"] = axes.axhline(teacher, color="black", linestyle=":", linewidth=1.2)
    axes.set_xticks(range(len(summary)), list(summary))
    axes.set_ylabel("test accuracy, %")
    axes.grid(axis="y", alpha=0.3)
    axes.margins(y=0.08)
    seeds = len({seed for _, seed in runs})
    axes.set_title(f"seeds: {seeds}; same teacher; per seed the same initial student and batches")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return _png(figure)


def loss_curves(runs: dict[tuple[str, int], Run]) -> bytes:
    """Each part of the loss by epoch: mean over the seeds, band from the lowest to the highest."""
    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True).flat
    handles = {}
    for axes, (part, title) in zip(panels, LOSSES.items(), strict=True):
        for method in dict.fromkeys(name for name, _ in runs):
            curves = [[row.get(part) for row in run.rows] for (name, _), run in runs.items() if name == method]
            length = min(sum(value is not None for value in curve) for curve in curves)
            if length == 0:
                continue
            values = np.array([curve[:length] for curve in curves], dtype=float)
            epochs = np.arange(1, length + 1)
            (handles[method],) = axes.plot(epochs, values.mean(0), color=COLOURS[method], linewidth=1.6)
            axes.fill_between(epochs, values.min(0), values.max(0), color=COLOURS[method], alpha=0.18, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        if axes.lines and part in ("ce", "kl"):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if not axes.lines:
            axes.text(0.5, 0.5, "no method has this term", ha="center", va="center", transform=axes.transAxes)
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supxlabel("epoch")
    figure.supylabel("training loss (unweighted, mean over the epoch's batches)")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
    return _png(figure)


def gaps(quartiles: dict[str, dict[str, Any]]) -> bytes:
    """The attack's gap after every step: median and quartile band, one line a preset; the end after refinement."""
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    axes = figure.subplots()
    last = 0
    for preset, numbers in quartiles.items():
        low, median, high = np.array(numbers["steps"]).T
        last = len(median) - 1
        axes.plot(range(last + 1), median, color=COLOURS[preset], marker="o", markersize=4, label=f"{preset}, median")
        axes.fill_between(range(last + 1), low, high, color=COLOURS[preset], alpha=0.2, linewidth=0, label="quartiles")
    for shift, (preset, numbers) in zip((-0.12, 0.12), quartiles.items(), strict=False):
        low, median, high = numbers["final"]
        axes.errorbar(
            last + 1.5 + shift,
            median,
            yerr=[[median - low], [high - median]],
            fmt="D",
            color=COLOURS[preset],
            markersize=6,
            capsize=4,
        )
    axes.axhline(0.0, color="black", linewidth=1.0)
    axes.text(last + 0.6, 0.08, "decision boundary", ha="right", va="bottom", fontsize=9)
    axes.axvline(last + 0.75, color="black", linewidth=0.6, linestyle=":")
    axes.set_xticks([*range(last + 1), last + 1.5], [*map(str, range(last + 1)), "end"])
    axes.set_xlabel("attack step; «end»: what training gets, after any bisections")
    axes.set_ylabel("gap  f_base − f_target  (teacher's logits)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return _png(figure)


def samples(probe: Probe, data: Data) -> bytes:
    """Clean images, boundary samples and what was changed, with the teacher's probabilities of base and target."""
    shown = _varied(probe)
    presets = list(probe.samples)
    count = len(shown)
    figure = Figure(figsize=(1.75 * count + 1.6, 1.9 * (1 + 2 * len(presets)) + 0.5), layout="constrained")
    grid = figure.subplots(1 + 2 * len(presets), count, squeeze=False)
    clean = data.pixels(probe.images).cpu()
    changed = {name: data.pixels(part.images).cpu() - clean for name, part in probe.samples.items()}
    limit = max(1e-6, max(float(part[shown].abs().max()) for part in changed.values()))
    for column, row in enumerate(shown):
        base, target = int(probe.base[row]), int(probe.target[row])
        head = f"{data.classes[base]} → {data.classes[target]}"
        _picture(grid[0][column], clean[row], f"{head}\n{_odds(probe.logits[row], data, base, target)}")
        for block, (name, part) in enumerate(probe.samples.items()):
            aimed, landed = int(part.target[row]), int(part.logits[row].argmax())
            note = _odds(part.logits[row], data, base, aimed)
            if aimed != target:
                note = f"target now {data.classes[aimed]}\n{note}"
            elif landed not in (base, aimed):
                note = f"{note}\n{_odds(part.logits[row], data, landed)}"
            _picture(grid[1 + 2 * block][column], clean[row] + changed[name][row], note)
            shade = _difference(grid[2 + 2 * block][column], changed[name][row], limit)
    names = ["clean", *(text for name in presets for text in (name, "difference"))]
    for axes, name in zip(grid[:, 0], names, strict=True):
        axes.set_ylabel(name, fontsize=11)
    figure.colorbar(shade, ax=grid[:, -1], label="change of a pixel (range of the pixels: 0 to 1)", shrink=0.5)
    return _png(figure)


def _varied(probe: Probe) -> list[int]:
    """Rows of as many different base classes as fit."""
    first = {int(label): row for row, label in reversed(list(enumerate(probe.base.tolist())))}
    rows = [first[label] for label in sorted(first)]
    rows += [row for row in range(len(probe.base)) if row not in rows]
    return rows[:SAMPLES]


def _odds(logits: torch.Tensor, data: Data, *classes: int) -> str:
    chances = logits.float().softmax(0)
    return "  ".join(f"p({data.classes[c]})={float(chances[c]):.2f}" for c in classes)


def _picture(axes: Any, image: torch.Tensor, title: str) -> None:
    pixels = image.clamp(0.0, 1.0).permute(1, 2, 0).numpy()
    axes.imshow(pixels.squeeze(), cmap="gray", vmin=0.0, vmax=1.0)
    axes.set_title(title, fontsize=8.5)
    axes.set_xticks([])
    axes.set_yticks([])


def _difference(axes: Any, change: torch.Tensor, limit: float) -> Any:
    shade = axes.imshow(change.mean(0).numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.set_title(f"L2 {float(change.norm()):.2f}", fontsize=8.5)
    axes.set_xticks([])
    axes.set_yticks([])
    return shade


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(buffer, dpi=130, format="png")
    return buffer.getvalue()
