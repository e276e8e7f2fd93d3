"""What was to be reached, what was measured, and why a miss is one."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.report import words
from benchmarks.report.judge import Row
from benchmarks.report.load import Results, key


class Judged(NamedTuple):
    """A goal with its row."""

    device: str
    row: Row
    goal: dict[str, Any]

    @property
    def name(self) -> str:
        """What misses.md calls it."""
        return f"{self.device}: {', '.join(key(self.row))}: {self.goal['kind']} {self.goal['bound']:g}"

    @property
    def missed(self) -> bool:
        return self.goal["reached"] is False


def judged(results: Results, device: str) -> list[Judged]:
    """All goals, misses first, then those that could not be judged."""
    found = [Judged(device, row, goal) for row in results.rows(device) for goal in row["goals"]]
    return sorted(found, key=lambda one: {False: 0, None: 1, True: 2}[one.goal["reached"]])


def table(found: list[Judged], known: dict[str, str]) -> str:
    """One row a goal."""
    lines = []
    for one in found:
        goal, row = one.goal, one.row
        case = f"{words.case(row, way=False)}, {row['direction']}{_form(goal)}"
        rival = goal["rival"] if goal["kind"] in ("speed-up", "time") else ""
        why = f": {known.get(one.name) or '**no analysis yet**'}" if one.missed else ""
        lines.append((case, asked(goal), rival, measured(goal), _verdict(goal) + why))
    return words.table(("case", "goal", "against", "measured", ""), lines)


def sentence(goal: dict[str, Any]) -> str:
    rival = f" against {goal['rival']}" if goal["kind"] in ("speed-up", "time") else ""
    got = f"{measured(goal)}, " if goal["measured"] is not None else ""
    return f"{asked(goal)}{rival}{_form(goal)}; {got}{_verdict(goal)}"


def asked(goal: dict[str, Any]) -> str:
    kind, bound = goal["kind"], goal["bound"]
    if kind in ("speed-up", "time"):
        return f"≥ {bound:g}×" if kind == "speed-up" else f"≤ {bound:g} of its time"
    return f"{kind} ≤ {words.size(bound) if kind == 'memory' else f'{bound:g}'}"


def measured(goal: dict[str, Any]) -> str:
    value = goal["measured"]
    if value is None:
        return ""
    if goal["kind"] in ("speed-up", "time"):
        spread = words.ratio({"median": value, "p10": goal["p10"], "p90": goal["p90"]})
        return spread.replace(" (", "× (", 1) if goal["kind"] == "speed-up" else spread
    return words.size(value) if goal["kind"] == "memory" else words.digits(value)


def _form(goal: dict[str, Any]) -> str:
    return f", {goal['form']}" if goal["form"] else ""


def _verdict(goal: dict[str, Any]) -> str:
    unjudged = f"not judged: {goal.get('reason', 'no reason given')}"
    return {True: "reached", False: "**missed**", None: unjudged}[goal["reached"]]
