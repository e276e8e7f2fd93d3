"""The rule that every case and direction is held to, and the one list of exceptions: misses.md."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from benchmarks.report import goals, words
from benchmarks.report.judge import Row
from benchmarks.report.load import DEVICES, Results, key

FASTER, SHARE, LEAST = 2.0, 0.7, 1.1
RULE = (
    f"Every case and direction takes at most half of the time of the best of the others, or reaches {SHARE:.0%} of its "
    f"limit, and is nowhere below {LEAST:g} times the best of the others."
).replace("%", " %")
WORST = 10


class Standing(NamedTuple):
    """A row under the rule."""

    device: str
    row: Row

    @property
    def name(self) -> str:
        """What misses.md calls it."""
        return f"{self.device}: {', '.join(key(self.row))}"

    @property
    def ratio(self) -> float:
        """Infinite where nobody else is."""
        return self.row["ratio"]["median"] if self.row["ratio"] else inf

    @property
    def kept(self) -> bool:
        faster = self.row["ratio"] is not None and self.ratio >= FASTER
        near = self.row["share"] is not None and self.row["share"] >= SHARE
        return (faster or near) and self.ratio >= LEAST


def standings(results: Results, device: str) -> list[Standing]:
    """Ours wherever somebody else is or a limit is known, the least ahead of the others first."""
    rows = [row for row in results.rows(device) if row["ours"] and (row["ratio"] or row["share"] is not None)]
    return sorted((Standing(device, row) for row in rows), key=lambda one: one.ratio)


def complaints(results: Results) -> list[str]:
    """Exceptions and missed goals that nobody explained, and explanations of what nobody measures."""
    asked = [one for device in DEVICES for one in goals.judged(results, device)]
    ruled = [one for device in DEVICES for one in standings(results, device)]
    names = {one.name for one in (*asked, *ruled)}
    measured = {name.split(":")[0] for name in names}
    broken = [("goal missed", one.name) for one in asked if one.missed]
    broken += [("rule broken", one.name) for one in ruled if not one.kept]
    silent = dict.fromkeys(
        f"{what} without an analysis in misses.md: {name}" for what, name in broken if not results.analyses.get(name)
    )
    lost = [name for name in results.analyses if name not in names and name.split(":")[0] in measured]
    return [*silent, *(f"misses.md explains what is neither a goal nor under the rule: {name}" for name in lost)]


def table(found: list[Standing], known: dict[str, str] | None = None) -> str:
    """One row each; with ``known`` also why."""
    lines = []
    for one in found:
        row = one.row
        ratio = (f"{words.ratio(row['ratio'])}×", row["best"]) if row["ratio"] else ("", "")
        limit = (words.share(row["share"]), row["bound"]) if row["share"] is not None else ("", "")
        why = [] if known is None else [known.get(one.name) or "**no analysis yet**"]
        lines.append((f"{words.case(row, way=False)}, {row['direction']}", *ratio, *limit, *why))
    if not lines:
        return "None."
    header = ("case", "ratio", "best of the others", "of the limit", "bound by", *["why"] * (known is not None))
    return words.table(header, lines)
