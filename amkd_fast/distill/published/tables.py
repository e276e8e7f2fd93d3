"""A published table with a row of this machine's accuracies below each of its rows."""

from __future__ import annotations

import textwrap
from importlib.resources import files
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from amkd_fast.distill.published import measured
from amkd_fast.distill.published.measured import Measured, Pair
from amkd_fast.distill.settings import METHODS

WIDTH = 100
DEFAULT = "runs"


def load(name: str) -> dict[str, Any]:
    """The table of that name: ``recipe``, ``sources``, ``pairs`` and ``rows``, as its file says."""
    import yaml

    return yaml.safe_load(files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8"))


def table(name: str, folders: list[str], *, markdown: bool = False) -> str:
    """The table as text.

    Args:
        name: ``cifar100``.
        folders: Results of train and compare, or folders of such; none: those in ``runs``, where there are any.
        markdown: As Markdown; otherwise in columns.

    Raises:
        UserError: A folder holds no result, or a damaged one.
    """
    published = load(name)
    blocks: list[list[Pair]] = [[(teacher, student) for teacher, student in block] for block in published["blocks"]]
    pairs = list(chain.from_iterable(blocks))
    places = measured.results(folders) if folders else _usual()
    runs = {place: measured.runs(place, published["recipe"]) for place in places}
    known = [run for found in runs.values() for run in found if any(run.is_of(pair) for pair in pairs)]
    draw = _markdown if markdown else _columns
    text = "\n".join(draw(block, _rows(published["rows"], pairs, block, known)) for block in blocks)
    left_out = [str(place) for place, found in runs.items() if not any(run in known for run in found)]
    return text + _notes(published, pairs, known, left_out, markdown)


def _usual() -> list[Path]:
    return sorted(path.parent for path in Path(DEFAULT).glob(f"*/{measured.MARKER}"))


def _rows(
    published: list[dict[str, Any]], pairs: list[Pair], block: list[Pair], known: list[Measured]
) -> list[tuple[str, list[str]]]:
    """Title and cells: of each published row, and of what was measured here."""
    rows = []
    places = [pairs.index(pair) for pair in block]
    found = {row["method"]: row for row in published}
    others = sorted({run.method for run in known if any(run.is_of(pair) for pair in block)} - found.keys())
    for method in (*found, *others):
        if method in found:
            numbers = [found[method]["accuracy"][place] for place in places]
            rows.append((found[method]["title"], ["–" if number is None else f"{number:.2f}" for number in numbers]))
        cells = [_cell([run for run in known if run.is_of(pair) and run.method == method]) for pair in block]
        if any(cells):
            rows.append(("  here" if method in found else f"{method}, here", cells))
    return rows


def _cell(runs: list[Measured]) -> str:
    """Mean and number of the runs; with a star of those that are not as the recipe is, where there are no others."""
    runs = [run for run in runs if not run.otherwise] or runs
    numbers = [run.accuracy for run in runs if run.accuracy is not None]
    if any(run.method == "teacher" for run in runs):  # one may have taught in several results
        numbers = sorted(set(numbers))
    if not numbers:
        return "diverged" if runs else ""
    return f"{fmean(numbers):.2f} ({len(numbers)})" + ("*" if any(run.otherwise for run in runs) else "")


def _columns(block: list[Pair], rows: list[tuple[str, list[str]]]) -> str:
    first = max(len(title) for title, _ in rows)
    widths = [max(len(name) for name in pair) for pair in block]
    widths = [max(width, *(len(cells[i]) for _, cells in rows)) for i, width in enumerate(widths)]
    heads = [("teacher", [pair[0] for pair in block]), ("student", [pair[1] for pair in block])]
    lines = [
        "  ".join([f"{title:{first}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))])
        for title, cells in (*heads, *rows)
    ]
    lines.insert(2, "-" * len(lines[0]))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _markdown(block: list[Pair], rows: list[tuple[str, list[str]]]) -> str:
    heads = [("", [f"{teacher} → {student}" for teacher, student in block]), ("---", ["---:"] * len(block))]
    return "".join(f"| {' | '.join([title.strip(), *cells])} |\n" for title, cells in (*heads, *rows))


def _notes(
    published: dict[str, Any], pairs: list[Pair], known: list[Measured], left_out: list[str], markdown: bool
) -> str:
    recipe = published["recipe"]
    by = {
        source: [row["title"] for row in published["rows"] if row["source"] == source]
        for source in published["sources"]
    }
    notes = [f"{', '.join(by[source])}: {text.strip()}." for source, text in published["sources"].items()]
    if known:
        notes.append("here: accuracy after the last epoch, its mean over so many runs; the teacher's as it was tested.")
    starred: dict[str, list[str]] = {}
    for run in known:
        if run.otherwise:
            said = ", ".join(f"{setting} {value}" for setting, value in run.otherwise.items())
            starred.setdefault(said, []).append(run.folder)
    for said, folders in starred.items():
        notes.append(
            f"* {', '.join(dict.fromkeys(folders))}: not as recipe {recipe} is ({said}), counted where nothing else is."
        )
    if left_out:
        notes.append(f"Left out, not by --recipe {recipe} or of other networks: {', '.join(left_out)}.")
    ours = [row["method"] for row in published["rows"] if row["method"] in METHODS]
    foreign = [row["title"] for row in published["rows"] if row["method"] not in (*METHODS, "teacher")]
    if foreign:
        notes.append(f"No method of this package: {', '.join(foreign)}.")
    missing: dict[str, list[str]] = {}
    for pair in pairs:
        lacking = [method for method in ours if not any(run.is_of(pair) and run.method == method for run in known)]
        if lacking:
            missing.setdefault(", ".join(lacking), []).append(" → ".join(pair))
    for methods, arrows in missing.items():
        notes.append(f"Not measured here: {methods} of {', '.join(arrows)}.")
    if missing:
        notes.append(
            f"amkd-distill compare --recipe {recipe} --teacher-network … --student-network … --methods … measures them."
        )
    if markdown:
        return "".join(f"\n{note}\n" for note in notes)
    return "\n" + "".join(
        textwrap.fill(note, WIDTH, subsequent_indent="  ", break_on_hyphens=False) + "\n" for note in notes
    )
