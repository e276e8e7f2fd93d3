"""Charts of the page as places between 0 and 100, which its template draws: sharp and readable at every width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from amkd_fast.distill.report.curves import Curve
from amkd_fast.distill.report.statistics import FEWEST

MOST = 240  # points of a line
TICKS = 4


class Tick(NamedTuple):
    """A value of an axis."""

    place: float
    text: str


class Line(NamedTuple):
    """A method's curve, as SVG takes points."""

    name: str
    colour: str
    points: list[str]  # one string for every stretch without a gap
    bands: list[str]


class Chart(NamedTuple):
    """Values by epoch."""

    title: str
    lines: list[Line]
    ticks: list[Tick]
    epochs: list[Tick]
    mark: float | None  # a horizontal line


class Row(NamedTuple):
    """A method's values in a strip."""

    name: str
    colour: str
    dots: list[float]
    mean: float | None
    ends: tuple[float, float] | None  # of the interval


class Strips(NamedTuple):
    """One quality of all methods."""

    title: str
    rows: list[Row]
    ticks: list[Tick]
    mark: float | None  # a vertical line


def chart(
    title: str,
    found: list[Curve],
    tones: dict[str, str],
    logarithmic: bool = False,
    mark: float | None = None,
    since: int = 1,
) -> Chart:
    """Curves over the epochs.

    Args:
        title: Above it.
        found: One curve a method.
        tones: The methods' colours.
        logarithmic: The scale; only for positive values.
        mark: A value at which a horizontal line is drawn.
        since: The first epoch that is shown, from 1.
    """
    found = [Curve(curve.method, *(part[since - 1 :] for part in curve[1:])) for curve in found]
    everything = np.ma.concatenate([part for curve in found for part in (curve.low, curve.high)])
    values = [*everything.compressed(), *([] if mark is None else [mark])]
    logarithmic = logarithmic and min(values) > 0.0
    low, high = _room(min(values), max(values), logarithmic)
    epochs = max(len(curve.mean) for curve in found)

    def x(place: int) -> float:
        return 50.0 if epochs == 1 else 100.0 * place / (epochs - 1)

    def y(value: float) -> float:
        return 100.0 - _place(value, low, high, logarithmic)

    lines = []
    for curve in found:
        step = -(-len(curve.mean) // MOST)
        points, bands = [], []
        for stretch in np.ma.clump_unmasked(np.ma.masked_invalid(curve.mean)):
            places = [*range(stretch.start, stretch.stop - 1, step), stretch.stop - 1]
            points.append(" ".join(f"{x(n):.4g},{y(curve.mean[n]):.4g}" for n in places))
            around = [(n, curve.low[n]) for n in places] + [(n, curve.high[n]) for n in reversed(places)]
            bands.append(" ".join(f"{x(n):.4g},{y(value):.4g}" for n, value in around))
        lines.append(Line(curve.method, tones[curve.method], points, bands))
    last = since + epochs - 1
    numbers = sorted({since, last, *(int(n) for n in MaxNLocator(TICKS, integer=True).tick_values(since, last))})
    inner = [n for n in numbers if n in (since, last) or since + 0.1 * epochs < n < last - 0.1 * epochs]
    return Chart(
        title,
        lines,
        [Tick(y(value), _text(value)) for value in _ticks(low, high, logarithmic)],
        [Tick(x(n - since), str(n)) for n in inner],
        None if mark is None else y(mark),
    )


def strips(title: str, rows: dict[str, dict[str, Any]], tones: Sequence[str], mark: float | None) -> Strips:
    """Seeds, mean and interval of every row, side by side on one axis.

    Args:
        title: Above it.
        rows: By name, ``values``, ``mean``, ``low``, ``high`` and ``n``.
        tones: The rows' colours.
        mark: A value at which a vertical line is drawn.
    """
    known = {name: [value for value in row["values"] if value is not None] for name, row in rows.items()}
    whole = {name: row["low"] is not None and row["n"] >= FEWEST for name, row in rows.items()}
    values = [value for of in known.values() for value in of] + ([] if mark is None else [mark])
    values += [row[end] for name, row in rows.items() if whole[name] for end in ("low", "high")]
    low, high = _room(min(values, default=0.0), max(values, default=1.0), False)

    def place(value: float) -> float:
        return _place(value, low, high, False)

    drawn = [
        Row(
            name,
            tone,
            [place(value) for value in known[name]],
            None if row["mean"] is None else place(row["mean"]),
            (place(row["low"]), place(row["high"])) if whole[name] else None,
        )
        for (name, row), tone in zip(rows.items(), tones, strict=True)
    ]
    ticks = [Tick(place(value), _text(value)) for value in _ticks(low, high, False)]
    return Strips(title, drawn, ticks, None if mark is None else place(mark))


def _room(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    """Ends of an axis, a little beyond its values."""
    if logarithmic:
        edge = (high / low) ** 0.05 if high > low else 1.5
        return low / edge, high * edge
    edge = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return low - edge, high + edge


def _place(value: float, low: float, high: float, logarithmic: bool) -> float:
    value, low, high = np.log([value, low, high]) if logarithmic else (value, low, high)
    return round(float(100.0 * (value - low) / (high - low)), 3)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    locator: Locator = MaxNLocator(TICKS)
    if logarithmic and high > 5.0 * low:
        locator = LogLocator(subs=(1.0, 2.0, 5.0) if high < 100.0 * low else (1.0,), numticks=8)
    return [float(value) for value in locator.tick_values(low, high) if low <= value <= high]


def _text(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")
