"""The files of benchmarks/results, read and checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.groups import FAMILIES, described
from benchmarks.report.judge import Row, judged
from benchmarks.timing import Patience

DEVICES = ("cpu", "cuda")
QUICKLY = "made with --quick"
EVIDENCE = "cifar10-{}.json"  # of a part
MARGINS = "margins"  # what lines of it, of a part, begin with
_ROW = {"contestants", "left_out", "ratios", "limit", "extras"}


@dataclass
class Results:
    """What was measured, and what speaks against publishing it."""

    comparisons: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)  # by family and device
    scaling: dict[str, dict[str, Any]] = field(default_factory=dict)  # by device
    digits: dict[str, Any] | None = None  # of `amkd-distill compare`
    dropped: dict[str, Any] | None = None  # the same with labels that the student never sees
    evidence: dict[str, dict[str, Any]] = field(default_factory=dict)  # of benchmarks.evidence, by part
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # of benchmarks.evidence, by their file
    presets: dict[str, Any] | None = None  # of benchmarks.presets
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)  # where, when and of what, by the file's name
    doubts: dict[str, str] = field(default_factory=dict)  # why a file makes drafts only, by its name
    analyses: dict[str, str] = field(default_factory=dict)  # why a goal is missed, by its name: misses.md
    unread: dict[str, str] = field(default_factory=dict)  # files that no table is made from, with the reason

    def rows(self, device: str, family: str = "") -> list[Row]:
        """The rows of a device, in the order of the families."""
        wanted = [family] if family else FAMILIES
        return [row for name in wanted for row in self.comparisons.get((name, device), {}).get("groups", [])]


def load(folder: Path) -> Results:
    """Everything that tables are made from."""
    results = Results(analyses=read_analyses(folder.parent / "misses.md"))
    for device in DEVICES:
        for family in FAMILIES:
            if found := _take(folder / f"{family}-{device}.json", "comparison", results):
                known = {str(group): group for group in described(family, device)}
                rows = [judged(row, known.get(", ".join(key(row)[:3]))) for row in found["groups"]]
                results.comparisons[family, device] = {**found, "groups": rows}
        if found := _take(folder / f"scaling-{device}.json", "scaling", results):
            results.scaling[device] = found
    results.digits = _take(folder / "digits.json", "compare", results)
    results.dropped = _take(folder / "digits-dropped.json", "compare", results)
    for path in sorted(folder.glob(EVIDENCE.format("*"))):
        if found := _take(path, "compare", results):
            results.evidence[path.stem.removeprefix(EVIDENCE.partition("{")[0])] = found
    for path in sorted((folder / "cifar10").glob("*.jsonl")):
        results.lines[path.stem] = [json.loads(line) for line in path.read_text().splitlines()]
    results.presets = _take(folder / "presets-digits.json", "presets", results)
    return results


def shortened(results: dict[str, Any]) -> dict[str, Any]:
    """Of a results.json of ``amkd-distill compare`` what tables are made from: no single runs."""
    kept = ("kind", "environment", "settings", "data", "images", "methods", "qualities", "tests")
    found = {name: results[name] for name in kept}
    return {**found, "tests": [test for test in found["tests"] if test["baseline"] == "kd"]}


def read_analyses(path: Path) -> dict[str, str]:
    """The text below each heading ``## NAME`` of a Markdown file, on one line; headings in a row have one text."""
    if not path.exists():
        return {}
    found, shared = {}, ""
    parts = re.split(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)[1:]
    for name, text in zip(parts[-2::-2], parts[::-2], strict=True):
        found[name.strip()] = shared = " ".join(text.split()) or shared
    return found


def key(row: Row) -> tuple[str, ...]:
    """What a row is about."""
    return row["operation"], sizes(row), row["dtype"], row["direction"]


def sizes(row: Row) -> str:
    return ", ".join(f"{name} = {size}" for name, size in row["sizes"].items())


def _take(path: Path, kind: str, results: Results) -> dict[str, Any] | None:
    """The file if it is there and can be used; why not, and what speaks against it, goes into ``results``."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        results.unread[path.name] = str(error)
        return None
    if not isinstance(found, dict) or found.get("kind") != kind:
        results.unread[path.name] = f"no file of kind {kind}: made by another script, or by an older version of it"
        return None
    if lacking := {name for row in found.get("groups", ()) for name in _ROW - row.keys()}:
        results.unread[path.name] = f"a row lacks {', '.join(sorted(lacking))}"
        return None
    if (about := found.get("machine")) is None:  # of amkd-distill
        about = {**found["environment"], "commit": machine.short(found["environment"]["commit"]), "load": None}
    results.machines[path.name] = about
    reasons = []
    if about["commit"] is None or about["commit"].endswith("+"):
        reasons.append(f"made at {about['commit']}, with changes that no commit has")
    if found.get("quick") or any(row["rounds"] < Patience().fewest for row in found.get("groups", ())):
        reasons.append(QUICKLY)
    if reasons:
        results.doubts[path.name] = "; ".join(reasons)
    return found
