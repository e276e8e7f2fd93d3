"""The pages of docs/benchmarks: one a family with everything that was measured, and the index."""

from __future__ import annotations

from typing import Any

from benchmarks.groups import FAMILIES
from benchmarks.report import goals, words
from benchmarks.report.load import DEVICES, Results, Row, sizes
from benchmarks.report.tables import last_directions

MADE = "<!-- Made by `python -m benchmarks.report` of the files in benchmarks/results: change those. -->"
ON = {"cpu": "On a CPU", "cuda": "On a GPU"}
WORST = 5
_HOW = (
    f"Times are medians of one call, ratios theirs over ours of the medians; {words.SPREAD}, of a ratio within a "
    "round. Errors are against fp64, relative to the largest entry: of the value, of the gradient. Memory is the peak "
    "beyond the inputs, of forward and backward together where there is a backward pass. The limit is the least work "
    "at the rates that this machine reached in the same run."
)

Axis = dict[str, Any]


def pages(results: Results) -> dict[str, str]:
    """All pages by file name."""
    found = {f"{family}.md": family_page(results, family) for family in FAMILIES if _measured(results, family)}
    return {**found, "README.md": index(results)}


def pictures(results: Results) -> set[str]:
    """The names of the files that the pages show."""
    shown = {
        ratios_png(family, device) for family, device in results.comparisons if _has_rivals(results, family, device)
    }
    return shown | {scaling_png(axis, device) for device, found in results.scaling.items() for axis in found["axes"]}


def family_page(results: Results, family: str) -> str:
    parts = [MADE, f"# {family}", _HOW]
    for device in DEVICES:
        parts.append(f"## {ON[device]}")
        comparison, axes = results.comparisons.get((family, device)), scaling_axes(results, family, device)
        if comparison is not None:
            parts += _compared(results, family, device, comparison)
        if axes:
            parts += _scaled(results, device, axes)
        if comparison is None and not axes:
            parts.append(words.NOT_YET)
    return "\n\n".join(parts) + "\n"


def index(results: Results) -> str:
    parts = [
        MADE,
        "# Benchmarks",
        "What is measured and how is told in [benchmarks/README.md](../../benchmarks/README.md).",
    ]
    lines = []
    for family in FAMILIES:
        on = [
            words.made(results, f"{family}-{device}.json") if (family, device) in results.comparisons else words.NOT_YET
            for device in DEVICES
        ]
        lines.append((f"[{family}]({family}.md)" if _measured(results, family) else family, *on))
    parts.append(words.table(("family", *ON.values()), lines))
    for device in DEVICES:
        parts.append(f"## Goals, {ON[device][:1].lower()}{ON[device][1:]}")
        found = goals.judged(results, device)
        note = f"Misses first; {words.SPREAD} of the ratio within a round. Machine and date of each family are above."
        parts += [note, goals.table(found, results.analyses)] if found else [words.NOT_YET]
    for device in DEVICES:
        parts.append(f"## Farthest from the limit, {ON[device][:1].lower()}{ON[device][1:]}")
        parts.append(_farthest(results.rows(device)))
    parts += ["## Who is not there", _absent(results)]
    return "\n\n".join(parts) + "\n"


def scaling_axes(results: Results, family: str, device: str) -> list[Axis]:
    return [axis for axis in results.scaling.get(device, {"axes": []})["axes"] if axis["family"] == family]


def scaling_png(axis: Axis, device: str) -> str:
    return f"scaling-{axis['name']}-{device}.png"


def ratio_rows(results: Results, family: str, device: str) -> list[Row]:
    """What the picture of the ratios shows: of every case all of it, where somebody else is there."""
    rows = last_directions(results.rows(device, family))
    return [row for row in rows if row["ours"] is not None and row["best"] is not None]


def _compared(results: Results, family: str, device: str, comparison: dict[str, Any]) -> list[str]:
    rows = comparison["groups"]
    parts = [words.made(results, f"{family}-{device}.json")]
    if _has_rivals(results, family, device):
        parts.append(f"![How many times longer the others take, {family}, {device}]({ratios_png(family, device)})")
    parts += [f"**Wrong, not timed:** {line}" for line in comparison["wrong"]]
    heading = None
    for row in rows:
        title = f"### {row['operation']}, {sizes(row)}, {row['dtype']}"
        if title != heading:
            parts += [title, *_extras(row["extras"])]
        heading = title
        parts += [_how(row), _contestants(row)]
        parts += [f"Left out: {name}: {reason}" for name, reason in row["left_out"].items()]
        parts += [_goal(goal) for goal in row["goals"]]
    return parts


def _how(row: Row) -> str:
    text = f"**{row['direction']}**, {row['rounds']} rounds"
    if row["limit"] is None:
        return text + "."
    limit = row["limit"]
    return (
        f"{text}; limit {words.time(1e6 * limit['seconds'])} by {limit['bound']}: {words.size(limit['bytes'])}, "
        f"{limit['exponentials']:,} exponentials, {limit['products']:,} products, {limit['launches']} launches."
    )


def _contestants(row: Row) -> str:
    """Everybody, the fastest first; a column of ratios for each way of ours."""
    mine = list(row["ratios"])
    lines = []
    for title, entry in sorted(row["contestants"].items(), key=lambda item: item[1]["us"]["median"]):
        ratios = [words.ratio(row["ratios"][own][title]) if title in row["ratios"][own] else "" for own in mine]
        errors = " / ".join(f"{entry[name]:.0e}" for name in ("value", "grad") if entry.get(name) is not None)
        share = "" if entry["share_of_limit"] is None else words.share(entry["share_of_limit"])
        memory = "" if entry.get("peak_bytes") is None else words.size(entry["peak_bytes"])
        name = f"**{title}**" if entry["ours"] else title
        lines.append((name, words.times(entry["us"]), *ratios, memory, errors, share))
    over = ["ratio"] if len(mine) == 1 else [f"over {own}" for own in mine]
    return words.table(("", "time", *over, "memory", "errors", "of the limit"), lines)


def _goal(goal: dict[str, Any]) -> str:
    form = f", {goal['form']}" if goal["form"] else ""
    rival = f" against {goal['rival']}" if goal["kind"] in ("speed-up", "time") else ""
    verdict = {True: "reached", False: "**missed**", None: f"not judged: {goal.get('reason', '')}"}[goal["reached"]]
    got = f"{goals.measured(goal)}, " if goal["measured"] is not None else ""
    return f"Goal: {goals.asked(goal)}{rival}{form}; {got}{verdict}."


def _extras(extras: dict[str, Any]) -> list[str]:
    """Numbers as one table; what has parts of its own as a table each."""
    flat = {name: value for name, value in extras.items() if not isinstance(value, (dict, list))}
    parts = [words.table(flat, [[_plain(value) for value in flat.values()]])] if flat else []
    for name, value in extras.items():
        if isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values()):
            columns = list(dict.fromkeys(column for part in value.values() for column in part))
            lines = [(inner, *(_plain(part.get(column)) for column in columns)) for inner, part in value.items()]
            parts.append(words.table((name, *columns), lines))
        elif isinstance(value, dict):
            parts.append(words.table((name, *value), [("", *map(_plain, value.values()))]))
        elif isinstance(value, list):
            parts.append(f"{name}: {', '.join(map(_plain, value))}")
    return parts


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scaled(results: Results, device: str, axes: list[Axis]) -> list[str]:
    found = results.scaling[device]
    most = found["most"]
    parts = [
        "### Scaling",
        f"A contestant stops before it would take over {most['seconds']:g} s or {words.size(most['bytes'])} a call, "
        f"as its last two points foretell. {words.made(results, f'scaling-{device}.json')}",
    ]
    for axis in axes:
        parts.append(f"#### {axis['title']}")
        parts.append(f"![Time and memory against {axis['letter']}]({scaling_png(axis, device)})")
        titles = list(dict.fromkeys(title for point in axis["points"] for title in point["contestants"]))
        lines = []
        for point in axis["points"]:
            entries = [point["contestants"].get(title) for title in titles]
            cells = (
                f"{words.times(entry['us'])}, {words.size(entry['peak_bytes'])}" if entry else "" for entry in entries
            )
            least = "" if point["limit"] is None else words.time(1e6 * point["limit"]["seconds"])
            lines.append((str(point["size"]), *cells, least))
        parts.append(words.table((axis["letter"], *titles, "limit"), lines))
        parts += [f"{title}: {stop['reason']}" for title, stop in axis["stopped"].items()]
        left_out = {title: reason for point in axis["points"] for title, reason in point["left_out"].items()}
        parts += [f"Left out: {title}: {reason}" for title, reason in left_out.items()]
    return parts


def _farthest(rows: list[Row]) -> str:
    """Of those cases that have a limit; calls alone are no work, so the bound says what a share means."""
    known = [row for row in last_directions(rows) if row["limit"] is not None and row["ours"] is not None]
    shares = {row["contestants"][row["ours"]]["share_of_limit"]: row for row in known}
    lines = [
        (f"{words.case(row, way=False)}, {row['direction']}", words.share(share), row["limit"]["bound"])
        for share, row in sorted(shares.items())[:WORST]
    ]
    return words.table(("case", "of the limit", "bound by"), lines) if lines else words.NOT_YET


def _absent(results: Results) -> str:
    lines: dict[tuple[str, str], list[str]] = {}
    for (family, device), comparison in results.comparisons.items():
        for name, reason in comparison["absent"].items():
            lines.setdefault((name, f"{device}: {reason}"), []).append(family)
    if not lines:
        return "Everybody is." if results.comparisons else words.NOT_YET
    return words.table(("who", "why", "in"), [(*what, ", ".join(families)) for what, families in lines.items()])


def _has_rivals(results: Results, family: str, device: str) -> bool:
    return bool(ratio_rows(results, family, device))


def ratios_png(family: str, device: str) -> str:
    return f"{family}-{device}.png"


def _measured(results: Results, family: str) -> bool:
    return any((family, device) in results.comparisons or scaling_axes(results, family, device) for device in DEVICES)
