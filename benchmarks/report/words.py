"""Numbers and provenance as tables show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks import machine
from benchmarks.report.load import Results

SPREAD = "in brackets the 10th and 90th percentile"
NOT_YET = "*Not measured yet.*"


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def time(us: float) -> str:
    """Three digits of microseconds, in the unit that suits them."""
    unit, name = _unit(us)
    return f"{digits(us / unit)} {name}"


def size(count: float) -> str:
    """Bytes."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((f"{digits(count / unit)} {name}" for unit, name in units if count >= 0.9995 * unit), f"{count:.0f} B")


def digits(value: float) -> str:
    """Three of them, without an exponent."""
    places = 0
    while 0 < abs(value) * 10**places < 99.95 and places < 6:
        places += 1
    return f"{value:.{places}f}"


def times(spread: dict[str, float]) -> str:
    """A time in µs with its spread, all in one unit."""
    unit, _ = _unit(spread["median"])
    return f"{time(spread['median'])} ({digits(spread['p10'] / unit)}–{digits(spread['p90'] / unit)})"


def ratio(spread: dict[str, float]) -> str:
    """A ratio with its spread, to a hundredth below 10."""

    def one(value: float) -> str:
        return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"

    return f"{one(spread['median'])} ({one(spread['p10'])}–{one(spread['p90'])})"


def share(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.0995 else f"{100 * part:.1f} %"


def shape(row: dict[str, Any]) -> str:
    """The sizes as a tensor's: ``[128, 10]``, and those that are none by name."""
    inner = ", ".join(str(size) for name, size in row["sizes"].items() if len(name) == 1)
    named = [f"{name} {size}" for name, size in row["sizes"].items() if len(name) > 1]
    return ", ".join([f"[{inner}]"] * bool(inner) + named)


def case(row: dict[str, Any], way: bool = True) -> str:
    """What a row is about; with ``way`` its direction, where that is not both."""
    direction = f", {row['direction']}" if way and row["direction"] != "both" else ""
    return f"{row['operation']} {shape(row)} {row['dtype']}{direction}"


def made(results: Results, file: str) -> str:
    """Where, when and of what the numbers of a file were made."""
    doubt = results.doubts.get(file)
    warning = f"**Draft ({doubt}).** " if doubt else ""
    return f"{warning}{machine.in_words(results.machines[file])}."


def _unit(us: float) -> tuple[float, str]:
    return next(((unit, name) for unit, name in ((1e6, "s"), (1e3, "ms")) if us >= 0.9995 * unit), (1.0, "µs"))
