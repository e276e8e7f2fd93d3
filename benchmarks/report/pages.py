"""The pages of docs/benchmarks: one a family with everything that was measured, and the index."""

from __future__ import annotations

from typing import Any

from benchmarks.groups import FAMILIES
from benchmarks.report import goals, rule, words
from benchmarks.report.judge import Row
from benchmarks.report.load import DEVICES, Results, sizes
from benchmarks.report.tables import last_directions

MADE = "<!-- Made by `python -m benchmarks.report` of the files in benchmarks/results: change those. -->"
ON = {"cpu": "On a CPU", "cuda": "On a GPU"}
_HOW = (
    f"Times are medians of one call, ratios theirs over ours of the medians; {words.SPREAD}, of a ratio within a "
    "round. Errors are against fp64, relative to the largest entry: of the value, of the gradient. Memory is the peak "
    "beyond the inputs, of forward and backward together where there is a backward pass. The limit is the least work "
    "at the rates that this machine reached in the same run."
)

Axis = dict[str, Any]


def pages(results: Results) -> dict[str, str]:
    """All pages by file name."""
    found = {f"{family}.md": family_page(results, family) for family in FAMILIES}
    measured = {name: "\n\n".join(parts) + "\n" for name, parts in found.items() if parts}
    return {**measured, "README.md": index(results, measured)}


def pictures(results: Results) -> dict[str, list[Row] | Axis]:
    """By the name of the file what it shows: rows of a family where somebody else is there, or an axis."""
    found: dict[str, list[Row] | Axis] = {}
    for family, device in results.comparisons:
        rows = last_directions(results.rows(device, family))
        if rows := [row for row in rows if row["ours"] is not None and row["best"] is not None]:
            found[f"{family}-{device}.png"] = rows
    for device, scaling in results.scaling.items():
        found |= {f"scaling-{axis['name']}-{device}.png": axis for axis in scaling["axes"]}
    return found


def family_page(results: Results, family: str) -> list[str]:
    """Its parts; none where nothing was measured."""
    parts, shown = [MADE, f"# {family}", _HOW], pictures(results)
    for device in DEVICES:
        comparison = results.comparisons.get((family, device))
        axes = [axis for axis in results.scaling.get(device, {"axes": []})["axes"] if axis["family"] == family]
        parts.append(f"## {ON[device]}")
        if comparison is not None:
            parts.append(words.made(results, f"{family}-{device}.json"))
            if (name := f"{family}-{device}.png") in shown:
                parts.append(f"![How many times longer the others take, {family}, {device}]({name})")
            parts += [f"**Wrong, not timed:** {line}" for line in comparison["wrong"]] + _rows(comparison["groups"])
        if axes:
            parts += _scaled(results, device, axes)
        if comparison is None and not axes:
            parts.append(words.NOT_YET)
    return parts if parts.count(words.NOT_YET) < len(DEVICES) else []


def index(results: Results, measured: dict[str, str]) -> str:
    about = "What is measured and how is told in [benchmarks/README.md](../../benchmarks/README.md)."
    lines = []
    for family in FAMILIES:
        files = [f"{family}-{device}.json" for device in DEVICES]
        made = (words.made(results, file) if file in results.machines else words.NOT_YET for file in files)
        lines.append((f"[{family}]({family}.md)" if f"{family}.md" in measured else family, *made))
    ruled = {device: rule.standings(results, device) for device in DEVICES}
    sections = {
        "The worst": (
            f"The least ahead of the others; {words.SPREAD} of the ratio within a round.",
            lambda device: rule.table(ruled[device][: rule.WORST]),
        ),
        "Exceptions": (
            f"{rule.RULE} But these.",
            lambda device: rule.table([one for one in ruled[device] if not one.kept], results.analyses),
        ),
        "Goals": (
            "What is asked for beyond that; misses first.",
            lambda device: goals.table(goals.judged(results, device), results.analyses),
        ),
    }
    parts = [MADE, "# Benchmarks", about]
    for name, (note, section) in sections.items():
        for device, title in ON.items():
            parts.append(f"## {name}, {title[:1].lower()}{title[1:]}")
            parts += [note, section(device)] if ruled[device] else [words.NOT_YET]
    parts += ["## When and where", words.table(("family", *ON.values()), lines)]
    return "\n\n".join([*parts, "## Who is not there", _absent(results)]) + "\n"


def _rows(rows: list[Row]) -> list[str]:
    parts, heading = [], None
    for row in rows:
        title = f"### {row['operation']}, {sizes(row)}, {row['dtype']}"
        if title != heading:
            parts += [title, *_extras(row["extras"])]
        heading = title
        how, limit = f"**{row['direction']}**, {row['rounds']} rounds", row["limit"]
        if limit is not None:
            how += f"; limit {words.time(1e6 * limit['seconds'])} by {limit['bound']}: {words.size(limit['bytes'])}, "
            how += (
                f"{limit['exponentials']:,} exponentials, {limit['products']:,} products, {limit['launches']} launches"
            )
        parts += [f"{how}.", _contestants(row)]
        parts += [f"Left out: {name}: {reason}" for name, reason in row["left_out"].items()]
        parts += [f"Goal: {goals.sentence(goal)}." for goal in row["goals"]]
    return parts


def _contestants(row: Row) -> str:
    """Everybody, the fastest first; a column of ratios for each way of ours."""
    mine = list(row["ratios"])
    lines = []
    for title, entry in sorted(row["contestants"].items(), key=lambda item: item[1]["us"]["median"]):
        ratios = [words.ratio(row["ratios"][own][title]) if title in row["ratios"][own] else "" for own in mine]
        errors = " / ".join(f"{entry[name]:.0e}" for name in ("value", "grad") if entry[name] is not None)
        share = "" if entry["share_of_limit"] is None else words.share(entry["share_of_limit"])
        name = f"**{title}**" if entry["ours"] else title
        lines.append((name, words.times(entry["us"]), *ratios, words.size(entry["peak_bytes"]), errors, share))
    over = ["ratio"] if len(mine) == 1 else [f"over {own}" for own in mine]
    return words.table(("", "time", *over, "memory", "errors", "of the limit"), lines)


def _extras(extras: dict[str, Any]) -> list[str]:
    """Numbers as one table; what has parts of its own as a table each."""
    flat = {name: value for name, value in extras.items() if not isinstance(value, dict)}
    parts = [words.table(flat, [map(_plain, flat.values())])] if flat else []
    for name, value in extras.items():
        if isinstance(value, dict) and all(isinstance(part, dict) for part in value.values()):
            lines = [(inner, *map(_plain, part.values())) for inner, part in value.items()]
            parts.append(words.table((name, *next(iter(value.values()))), lines))
        elif isinstance(value, dict):
            parts.append(words.table((name, *value), [("", *map(_plain, value.values()))]))
    return parts


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scaled(results: Results, device: str, axes: list[Axis]) -> list[str]:
    most = results.scaling[device]["most"]
    parts = [
        "### Scaling",
        f"A contestant stops before it would take over {most['seconds']:g} s or {words.size(most['bytes'])} a call, "
        f"as its last two points foretell. {words.made(results, f'scaling-{device}.json')}",
    ]
    for axis in axes:
        titles = list(dict.fromkeys(title for point in axis["points"] for title in point["contestants"]))
        lines = []
        for point in axis["points"]:
            entries = [point["contestants"].get(title) for title in titles]
            cells = (f"{words.times(it['us'])}, {words.size(it['peak_bytes'])}" if it else "" for it in entries)
            least = "" if point["limit"] is None else words.time(1e6 * point["limit"]["seconds"])
            lines.append((str(point["size"]), *cells, least))
        picture = f"![Time and memory against {axis['letter']}](scaling-{axis['name']}-{device}.png)"
        parts += [f"#### {axis['title']}", picture, words.table((axis["letter"], *titles, "limit"), lines)]
        parts += [f"{title}: {stop['reason']}" for title, stop in axis["stopped"].items()]
        left_out = {title: reason for point in axis["points"] for title, reason in point["left_out"].items()}
        parts += [f"Left out: {title}: {reason}" for title, reason in left_out.items()]
    return parts


def _absent(results: Results) -> str:
    lines: dict[tuple[str, str], list[str]] = {}
    for (family, device), comparison in results.comparisons.items():
        for name, reason in comparison["absent"].items():
            lines.setdefault((name, f"{device}: {reason}"), []).append(family)
    if not lines:
        return "Everybody is." if results.comparisons else words.NOT_YET
    return words.table(("who", "why", "in"), [(*what, ", ".join(families)) for what, families in lines.items()])
