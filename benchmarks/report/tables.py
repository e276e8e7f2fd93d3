"""The tables of summary.md and accuracy.md, by the names of their markers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.report import quality, words
from benchmarks.report.judge import OUTSIDE, Row
from benchmarks.report.load import DEVICES, Results
from benchmarks.timing import inverse

_RATIO = f"Ratios are those of the medians, theirs over ours; {words.SPREAD} of the ratio within a round."


class Column(NamedTuple):
    """How many times longer the fastest of those takes whose title starts with one of ``titles``."""

    name: str
    titles: tuple[str, ...]
    form: str = ""  # of ours: the operator alone instead of the public function
    inverse: bool = False  # ours over theirs instead


COLUMNS = {
    "triplet": (
        Column("pytorch-metric-learning", ("pytorch-metric-learning",)),
        Column("sentence-transformers", ("sentence-transformers",)),
        Column("faiss", ("faiss",)),
        Column("scikit-learn", ("scikit-learn",)),
        Column("compiled", ("compile", "max-autotune")),
        Column("eager", ("eager",)),
        Column("`torch.mm`", ("torch.mm",)),
    ),
    "attack": (
        Column("eager PyTorch", ("eager",)),
        Column("eager, against the operator alone", ("eager",), form="kernel alone"),
        Column("`torch.compile`", ("compile", "max-autotune")),
        Column("public code", ("public",)),
    ),
    "whole_attack": (
        Column("public loop", ("public",)),
        Column("careful loop", ("lean loop",)),
        Column("PGD loop", ("PGD loop",)),
        Column("torchattacks", ("torchattacks",)),
        Column("adversarial-library", ("adversarial-library",)),
    ),
    "training": (
        Column("eager loop", ("eager loop",)),
        Column("of its bare passes", ("bare passes",), inverse=True),
        Column("of our KD", ("plain KD",), inverse=True),
    ),
}


def summary(results: Results, device: str) -> str:
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


def against(results: Results, device: str, family: str) -> str:
    """Ours, and how many times longer each kind of rival takes: the last direction of every case."""
    lines = []
    for row in last_directions(results.rows(device, family)):
        if row["ours"] is None:
            continue
        ours = row["contestants"][row["ours"]]
        ratios = {column.name: compared(row, column) for column in COLUMNS[family]}
        more = {"memory": words.size(ours["peak_bytes"])} if family == "triplet" else {}
        more |= {OUTSIDE: words.share(row["extras"][OUTSIDE])} if OUTSIDE in row["extras"] else {}
        if any(ratios.values()):
            case = {"case": words.case(row, way=False), "amkd_fast": words.time(ours["us"]["median"])}
            lines.append({**case, **ratios, **more})
    if not lines:
        return words.NOT_YET
    header = dict.fromkeys(name for line in lines for name in line)
    header = [name for name in header if any(line.get(name) for line in lines)]
    cells = [[line.get(name, "") for name in header] for line in lines]
    return f"{words.table(header, cells)}\n\n{_RATIO} {words.made(results, f'{family}-{device}.json')}"


def compared(row: Row, column: Column) -> str:
    """The ratio of a column; empty where nobody is there."""
    forms = {entry["form"]: title for title, entry in row["contestants"].items() if entry["ours"]}
    ratios = row["ratios"].get(forms.get(column.form) if column.form else row["ours"], {})
    found = [spread for title, spread in ratios.items() if title.startswith(column.titles)]
    if not found:
        return ""
    spread = min(found, key=lambda spread: spread["median"])
    return words.ratio(inverse(spread) if column.inverse else spread)


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


def _by_device(section: Callable[..., str], *more: str) -> Callable[[Results], str]:
    """The CPU's part as it is, the GPU's behind a line that says so."""

    def both(results: Results) -> str:
        cpu, gpu = (section(results, device, *more) for device in DEVICES)
        return f"{cpu}\n\nOn a GPU: not measured yet." if gpu == words.NOT_YET else f"{cpu}\n\nOn a GPU:\n\n{gpu}"

    return both


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": _by_device(summary),
    **{family: _by_device(against, family) for family in COLUMNS},
    "methods": quality.methods,
    "dropped": quality.dropped,
    "presets": quality.presets,
}
