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
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def time(us: float) -> str:
    """Three digits of microseconds, in the unit that suits them."""
    unit, name = _unit(us)
    return f"{digits(us / unit)} {name}"


def size(count: float) -> str:
    """Bytes."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= 0.9995 * unit:
            return f"{digits(count / unit)} {name}"
    return f"{count:.0f} B"


def digits(value: float) -> str:
    """Three of them, without an exponent."""
    if value == 0:
        return "0"
    places = 0
    while abs(value) * 10**places < 99.95 and places < 6:
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


def inverse(spread: dict[str, float]) -> dict[str, float]:
    return {"median": 1 / spread["median"], "p10": 1 / spread["p90"], "p90": 1 / spread["p10"]}


def share(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.0995 else f"{100 * part:.1f} %"


def shape(row: dict[str, Any]) -> str:
    """The sizes as a tensor's: ``[128, 10]``, and those that are none by name."""
    letters = [name for name in row["sizes"] if len(name) == 1]
    named = [f"{name} {row['sizes'][name]}" for name in row["sizes"] if len(name) > 1]
    inner = ", ".join(str(row["sizes"][name]) for name in letters)
    return ", ".join([f"[{inner}]"] * bool(letters) + named)


def made(results: Results, file: str) -> str:
    """Where, when and of what the numbers of a file were made."""
    doubt = results.doubts.get(file)
    warning = f"**Draft ({doubt}).** " if doubt else ""
    return f"{warning}{machine.in_words(results.machines[file])}."


def _unit(us: float) -> tuple[float, str]:
    return next(((unit, name) for unit, name in ((1e6, "s"), (1e3, "ms")) if us >= 0.9995 * unit), (1.0, "µs"))


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
