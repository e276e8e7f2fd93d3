"""README's tables, by the names of their markers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.report import goals, quality, words
from benchmarks.report.load import DEVICES, Results, Row

_RATIO = f"Ratios are those of the medians, theirs over ours; {words.SPREAD} of the ratio within a round."


class Column(NamedTuple):
    """How many times longer the fastest of those takes whose title starts with one of ``titles``."""

    name: str
    titles: tuple[str, ...]
    form: str = ""  # of ours: the operator alone instead of the public function
    inverse: bool = False  # ours over theirs instead


OUTSIDE = "outside the network"  # an extra: the share of an attack's time
ASKED = ("triplet", "attack")  # have so many cases that README shows those with goals alone
COLUMNS = {
    "triplet": (
        Column("pytorch-metric-learning", ("pytorch-metric-learning",)),
        Column("sentence-transformers", ("sentence-transformers",)),
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


def summary(results: Results) -> str:
    """The cases that have a goal for their speed; of a family without one, its first case."""
    header = ("case", "amkd_fast", "best of the others", "ratio", "of the limit")

    def line(row: Row) -> tuple[str, ...]:
        ours = row["contestants"][row["ours"]]
        best = ratio = ""
        if row["best"] is not None:
            best = f"{words.time(row['contestants'][row['best']]['us']['median'])} ({row['best']})"
            ratio = words.ratio(row["ratios"][row["ours"]][row["best"]])
        return f"{case(row)}{_way(row)}", words.time(ours["us"]["median"]), best, ratio, limit(row)

    def headlines(device: str, family: str) -> list[Row]:
        rows = [row for row in results.rows(device, family) if row["ours"] is not None]
        asked = [row for row in rows if any(goal["kind"] in ("speed-up", "time") for goal in row["goals"])]
        return asked or last_directions(rows)[:1]

    def section(device: str) -> str:
        families = [family for family, on in results.comparisons if on == device]
        if not families:
            return words.NOT_YET
        lines = [line(row) for family in families for row in headlines(device, family)]
        note = f"{_RATIO} The limit: the least work at this machine's rates."
        return f"{words.table(header, lines)}\n\n{note}\n\n{_made(results, device)}"

    return _by_device(section)


def against(family: str) -> Callable[[Results], str]:
    """Ours, and how many times longer each kind of rival takes: the last direction of every case."""

    def section(results: Results, device: str) -> str:
        rows = [row for row in last_directions(results.rows(device, family)) if row["ours"] is not None]
        rows = [row for row in rows if row["goals"] or family not in ASKED]
        if not rows:
            return words.NOT_YET
        lines = []
        for row in rows:
            ours = row["contestants"][row["ours"]]
            line = {"case": case(row), "amkd_fast": words.time(ours["us"]["median"])}
            ratios = {column.name: compared(row, column) for column in COLUMNS[family]}
            more = {"memory": words.size(ours["peak_bytes"]) if family == "triplet" else ""}
            more |= {OUTSIDE: words.share(row["extras"][OUTSIDE])} if OUTSIDE in row["extras"] else {}
            if any(ratios.values()) or row["goals"]:
                lines.append({**line, **ratios, **more})
        header = dict.fromkeys(name for line in lines for name, cell in line.items() if cell)
        header = [name for name in dict.fromkeys(name for line in lines for name in line) if name in header]
        cells = [[line.get(name, "") for name in header] for line in lines]
        return f"{words.table(header, cells)}\n\n{_RATIO} {words.made(results, f'{family}-{device}.json')}"

    return lambda results: _by_device(lambda device: section(results, device))


def compared(row: Row, column: Column) -> str:
    """The ratio of a column; empty where nobody is there."""
    forms = {entry["form"]: title for title, entry in row["contestants"].items() if entry["ours"]}
    own = forms.get(column.form) if column.form else row["ours"]
    rivals = [title for title in row["ratios"].get(own, {}) if title.startswith(column.titles)]
    if not rivals:
        return ""
    spread = row["ratios"][own][min(rivals, key=lambda title: row["ratios"][own][title]["median"])]
    return words.ratio(words.inverse(spread) if column.inverse else spread)


def reached(results: Results) -> str:
    """How many goals are reached, and those that are not."""

    def section(device: str) -> str:
        found = goals.judged(results, device)
        if not found:
            return words.NOT_YET
        count = sum(one.goal["reached"] is True for one in found)
        missed = [one for one in found if one.missed]
        text = (
            f"{count} of {len(found)} goals reached, {len(missed)} missed, {len(found) - count - len(missed)} not "
            "judged; [docs/benchmarks](docs/benchmarks/README.md) has all of them. "
            f"Here {words.SPREAD} of the ratio within a round."
        )
        misses = [goals.table(missed, results.analyses)] if missed else []
        return "\n\n".join([text, *misses, _made(results, device)])

    return _by_device(section)


TABLES: dict[str, Callable[[Results], str]] = {
    "summary": summary,
    **{family: against(family) for family in COLUMNS},
    "methods": quality.methods,
    "dropped": quality.dropped,
    "presets": quality.presets,
    "goals": reached,
}


def last_directions(rows: list[Row]) -> list[Row]:
    """Of every case the row that has all of it: both directions where there are two."""
    return list({(row["operation"], str(row["sizes"]), row["dtype"]): row for row in rows}.values())


def case(row: Row) -> str:
    return f"{row['operation']} {words.shape(row)} {row['dtype']}"


def limit(row: Row) -> str:
    """Ours in the share of the least time, and what bounds that."""
    if row["limit"] is None or row["ours"] is None:
        return ""
    return f"{words.share(row['contestants'][row['ours']]['share_of_limit'])} ({row['limit']['bound']})"


def _way(row: Row) -> str:
    return "" if row["direction"] == "both" else f", {row['direction']}"


def _made(results: Results, device: str) -> str:
    """One line a run of the suite, with its families."""
    runs: dict[str, list[str]] = {}
    for family, on in results.comparisons:
        if on == device:
            runs.setdefault(words.made(results, f"{family}-{device}.json"), []).append(f"`{family}`")
    return "<br>\n".join(f"{', '.join(families)}: {run}" for run, families in runs.items())


def _by_device(section: Callable[[str], str]) -> str:
    """The CPU's part as it is, the GPU's behind a line that says so."""
    cpu, gpu = (section(device) for device in DEVICES)
    return f"{cpu}\n\nOn a GPU: not measured yet." if gpu == words.NOT_YET else f"{cpu}\n\nOn a GPU:\n\n{gpu}"
