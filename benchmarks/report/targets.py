"""What issues asked, what was measured, and why a miss is one."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.report import words
from benchmarks.report.load import Results, Row, key


class Judged(NamedTuple):
    """A target with its row."""

    device: str
    row: Row
    target: dict[str, Any]

    @property
    def name(self) -> str:
        """What misses.md calls it."""
        return f"{self.device}: {', '.join(key(self.row))}: {self.target['kind']} {self.target['bound']:g}"

    @property
    def missed(self) -> bool:
        return self.target["reached"] is False


def judged(results: Results, device: str) -> list[Judged]:
    """All targets, misses first, then those that could not be judged."""
    found = [Judged(device, row, target) for row in results.rows(device) for target in row["targets"]]
    return sorted(found, key=lambda one: {False: 0, None: 1, True: 2}[one.target["reached"]])


def complaints(results: Results) -> list[str]:
    """Misses that nobody explained, and explanations of what nobody measures."""
    found = [one for device in ("cpu", "cuda") for one in judged(results, device)]
    names = {one.name for one in found}
    measured = {name.split(":")[0] for name in names}
    silent = dict.fromkeys(one.name for one in found if one.missed and not results.analyses.get(one.name))
    lost = [name for name in results.analyses if name not in names and name.split(":")[0] in measured]
    return [f"missed without an analysis in misses.md: {name}" for name in silent] + [
        f"misses.md explains what is no target: {name}" for name in lost
    ]


def table(targets: list[Judged], known: dict[str, str]) -> str:
    """One row a target."""
    header = ("issue", "case", "asked", "against", "measured", "")
    return words.table(header, [_row(one, known) for one in targets])


def _row(one: Judged, known: dict[str, str]) -> tuple[str, ...]:
    target = one.target
    form = f", {target['form']}" if target["form"] else ""
    case = f"{one.row['operation']} {words.shape(one.row)} {one.row['dtype']}, {one.row['direction']}{form}"
    rival = "" if target["kind"] not in ("speed-up", "time") else target["rival"]
    if target["reached"] is None:
        verdict = f"not judged: {target.get('reason', 'no reason given')}"
    elif target["reached"]:
        verdict = "reached"
    else:
        verdict = f"**missed**: {known.get(one.name) or '**no analysis yet**'}"
    return f"#{target['issue']}", case, asked(target), rival, measured(target), verdict


def asked(target: dict[str, Any]) -> str:
    kind, bound = target["kind"], target["bound"]
    if kind == "speed-up":
        return f"≥ {bound:g}×"
    if kind == "time":
        return f"≤ {bound:g} of its time"
    return f"{kind} ≤ {words.size(bound) if kind == 'memory' else f'{bound:g}'}"


def measured(target: dict[str, Any]) -> str:
    value = target["measured"]
    if value is None:
        return ""
    if target["kind"] in ("speed-up", "time"):
        spread = words.ratio({"median": value, "p10": target["p10"], "p90": target["p90"]})
        return spread.replace(" (", "× (", 1) if target["kind"] == "speed-up" else spread
    return words.size(value) if target["kind"] == "memory" else words.digits(value)
