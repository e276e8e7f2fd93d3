"""The tables of summary.md and accuracy.md, by the names of their markers."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.report import evidence, quality, words
from benchmarks.report.judge import Row
from benchmarks.report.load import DEVICES, Results

_RATIO = f"Ratios are those of the medians, theirs over ours; {words.SPREAD} of the ratio within a round."


def summary(results: Results) -> str:
    """The CPU's part as it is, the GPU's behind a line that says so."""
    cpu, gpu = (_on(results, device) for device in DEVICES)
    return f"{cpu}\n\nOn a GPU: not measured yet." if gpu == words.NOT_YET else f"{cpu}\n\nOn a GPU:\n\n{gpu}"


def _on(results: Results, device: str) -> str:
    """Of every operation the case that is the least ahead of the others."""
    least: dict[str, Row] = {}
    for row in last_directions([row for row in results.rows(device) if row["ratio"] is not None]):
        known = least.setdefault(row["operation"], row)
        least[row["operation"]] = min(known, row, key=lambda row: row["ratio"]["median"])
    lines = []
    for row in least.values():
        ours, best = (words.time(row["contestants"][row[who]]["us"]["median"]) for who in ("ours", "best"))
        limit = "" if row["share"] is None else f"{words.share(row['share'])} ({row['bound']})"
        lines.append((words.case(row), ours, f"{best} ({row['best']})", words.ratio(row["ratio"]), limit))
    if not lines:
        return words.NOT_YET
    header = ("case", "amkd_fast", "best of the others", "ratio", "of the limit")
    note = f"{_RATIO} The limit: the least work at this machine's rates."
    return f"{words.table(header, lines)}\n\n{note}\n\n{_made(results, device)}"


def last_directions(rows: list[Row]) -> list[Row]:
    """Of every case the row that has all of it: both directions where there are two."""
    return list({(row["operation"], str(row["sizes"]), row["dtype"]): row for row in rows}.values())


def _made(results: Results, device: str) -> str:
    """One line a run of the suite, with its families."""
    runs: dict[str, list[str]] = {}
    for family, on in results.comparisons:
        if on == device:
            runs.setdefault(words.made(results, f"{family}-{device}.json"), []).append(f"`{family}`")
    return "<br>\n".join(f"{', '.join(families)}: {run}" for run, families in runs.items())


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": summary,
    "methods": quality.methods,
    "dropped": quality.dropped,
    "presets": quality.presets,
    **evidence.tables(),
}
