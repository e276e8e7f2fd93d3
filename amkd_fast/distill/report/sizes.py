"""The networks side by side: what the student saves, beside what it reaches."""

from __future__ import annotations

from typing import Any, NamedTuple


class Column(NamedTuple):
    """One measure of a network."""

    name: str  # in results.json
    label: str
    unit: str


COLUMNS = (
    Column("parameters", "parameters", "↓"),
    Column("multiply_adds", "multiply-adds", "an image ↓"),
    Column("images_per_second", "images a second", "↑"),
)


def sizes(result: dict[str, Any], best: str) -> dict[str, Any]:
    """Columns and rows of a table: teacher, student, and how many times smaller or faster the student is.

    Args:
        result: What goes to results.json; a measure that neither network has is left out.
        best: The method whose accuracy is the student's; empty: none is known.
    """
    networks = {role: result["networks"][role] for role in ("teacher", "student")}
    shown = [column for column in COLUMNS if any(found.get(column.name) for found in networks.values())]
    accuracies = {
        "teacher": result["teacher_accuracy"],
        "student": result["methods"][best]["last"]["mean"] if best else None,
    }
    rows: list[dict[str, Any]] = [
        {"name": f"{role}: {found['name']}", "accuracy": accuracies[role]}
        | {column.name: _count(found.get(column.name)) for column in shown}
        for role, found in networks.items()
    ]
    if accuracies["teacher"] is None:  # it is not there yet
        return {"columns": shown, "rows": rows, "best": best, "timed": COLUMNS[2] in shown}
    lost = None if accuracies["student"] is None else accuracies["student"] - accuracies["teacher"]
    rows.append(
        {"name": "student against teacher", "accuracy": lost} | {c.name: _ratio(c.name, networks) for c in shown}
    )
    return {"columns": shown, "rows": rows, "best": best, "timed": COLUMNS[2] in shown}


def _count(value: float | None) -> str:
    """With a unit's prefix where it is long.

    >>> _count(272474), _count(40813184.0), _count(812), _count(None)
    ('272 k', '40.8 M', '812', '–')
    """
    if value is None:
        return "–"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.0f}"


def _ratio(name: str, networks: dict[str, dict[str, Any]]) -> str:
    teacher, student = (networks[role].get(name) for role in ("teacher", "student"))
    if not teacher or not student:
        return "–"
    if name == "images_per_second":
        return f"{student / teacher:.3g} × as many"
    if teacher == student:
        return "equal"
    return f"1/{teacher / student:.3g}" if teacher >= student else f"{student / teacher:.3g} ×"
