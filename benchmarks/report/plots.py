"""The pictures of docs/benchmarks: ratios of a family, and time and memory along the axes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from amkd_fast.distill.report.style import COLOURS, OTHERS, picture
from benchmarks.report import pages, words
from benchmarks.report.judge import Row
from benchmarks.report.load import Results
from benchmarks.report.pages import Axis

# Kinds of rivals by how their titles start; of each the fastest is shown. Whoever is left is the last kind.
KINDS = {
    "plain PyTorch": ("reference", "eager", "torch.mm"),
    "torch.compile": ("compile", "max-autotune"),
    "libraries and public code": ("",),
}
_COLOURS = dict(zip(KINDS, (COLOURS["kd"], COLOURS["bss-official"], COLOURS["bss-near_boundary"]), strict=True))
_MARKERS = dict(zip(KINDS, "osD", strict=True))
_OURS = COLOURS["amkd"]
_LINES = (*(COLOURS[name] for name in ("kd", "bss-official", "bss-near_boundary", "bss-paper")), *OTHERS)
_SHAPES = "osD^vP"
MOST_LINES = 8
_TICKS = (1, 2, 5)


def drawn(results: Results) -> Iterator[tuple[str, bytes]]:
    """Every picture with its file name."""
    for name, shown in pages.pictures(results).items():
        yield name, ratios(shown) if isinstance(shown, list) else scaling(shown)


@picture
def ratios(rows: list[Row]) -> Figure:
    """How many times longer the fastest of each kind takes, with the spread; a mark where a goal is."""
    figure = Figure(figsize=(9.0, 1.5 + 0.42 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shown, asked = [], False
    for place, row in enumerate(rows):
        found = fastest(row)
        for turn, (kind, spread) in enumerate(found.items()):
            height = place + 0.22 * (turn - (len(found) - 1) / 2)
            # The ratio of the medians may lie outside of the ratios within a round.
            ends = [[max(spread["median"] - spread["p10"], 0.0)], [max(spread["p90"] - spread["median"], 0.0)]]
            look = {"color": _COLOURS[kind], "fmt": _MARKERS[kind], "markersize": 5, "capsize": 3, "linewidth": 1.4}
            axes.errorbar(spread["median"], height, xerr=ends, **look)
            shown.append(kind)
        for goal in row["goals"]:
            if goal["kind"] == "speed-up" and not goal["form"]:
                axes.vlines(goal["bound"], place - 0.4, place + 0.4, color="black", linewidth=1.6)
                asked = True
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1.0)
    axes.set_yticks(range(len(rows)), [words.case(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel("time of the others over ours (median; p10–p90 within a round)")
    _numbers(axes.xaxis)
    axes.grid(axis="x", alpha=0.3)
    handles = {
        f"{kind}, the fastest": Line2D([], [], linestyle="", marker=_MARKERS[kind], color=_COLOURS[kind])
        for kind in KINDS
        if kind in shown
    }
    if asked:
        handles["goal"] = Line2D([], [], linestyle="", marker="|", markersize=11, color="black")
    handles["as fast as ours"] = Line2D([], [], linestyle="--", color="black", linewidth=1.0)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


@picture
def scaling(axis: Axis) -> Figure:
    """Time and memory of a call along an axis, both logarithmic; a line a contestant, the limit dashed."""
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    points, handles = axis["points"], {}
    for title, look in looks(points).items():
        known = [(point["size"], point["contestants"][title]) for point in points if title in point["contestants"]]
        at = [size for size, _ in known]
        middle, low, high = ([entry["us"][part] / 1e3 for _, entry in known] for part in ("median", "p10", "p90"))
        (handles[title],) = time.plot(at, middle, **look)
        time.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)
        memory.plot(at, [max(entry["peak_bytes"], 1) / 1e6 for _, entry in known], **look)
    limits = [(point["size"], 1e3 * point["limit"]["seconds"]) for point in points if point["limit"] is not None]
    if limits:
        (handles["limit"],) = time.plot(*zip(*limits, strict=True), color="black", linestyle="--", linewidth=1.2)
    sizes = [point["size"] for point in points]
    for panel, name in ((time, "time of a call, ms"), (memory, "peak memory of a call, MB")):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(sizes, [_short(size) for size in sizes])
        panel.xaxis.set_minor_locator(NullLocator())
        _numbers(panel.yaxis)
        panel.set_xlabel(f"{axis['letter']}   ({axis['title']})")
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def fastest(row: Row) -> dict[str, dict[str, float]]:
    """Of each kind of rival the least ratio to ours; whoever is ahead of the best does less, and is a yardstick."""
    found: dict[str, dict[str, float]] = {}
    ratios = row["ratios"][row["ours"]]
    for title, spread in ratios.items():
        if spread["median"] < ratios[row["best"]]["median"]:
            continue
        kind = next(kind for kind, starts in KINDS.items() if title.startswith(starts))
        if kind not in found or spread["median"] < found[kind]["median"]:
            found[kind] = spread
    return {kind: found[kind] for kind in KINDS if kind in found}


def looks(points: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Colour and marker of every contestant: ours in front, then the others in their order, as far as lines go."""
    ours = {title: entry["ours"] for point in points for title, entry in point["contestants"].items()}
    first, *others = sorted(ours, key=lambda title: not ours[title])[: MOST_LINES - 1]
    found = {first: {"color": _OURS, "marker": "o", "linewidth": 2.4, "markersize": 6, "zorder": 5}}
    for title, colour, shape in zip(others, _LINES, _SHAPES * 2, strict=False):
        found[title] = {"color": colour, "marker": shape, "linewidth": 1.4, "markersize": 5}
    return found


def _short(size: int) -> str:
    """131072 as 131k: seven of them have to fit beside each other."""
    return str(size) if size < 10_000 else f"{size / 1000:.0f}k"


def _numbers(axis: Any) -> None:
    """Plain numbers on a logarithmic axis, as many as it has room for."""
    low, high = sorted(axis.get_view_interval())
    wide = high > 200 * max(low, 1e-12)
    axis.set_major_locator(LogLocator(subs=(1,) if wide else _TICKS))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}" if value < 1e5 else f"{value:.0e}"))
    axis.set_minor_formatter(NullFormatter())
