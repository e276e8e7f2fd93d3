"""The files of benchmarks/results, read and checked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.groups import FAMILIES
from benchmarks.interleave import Patience

DEVICES = ("cpu", "cuda")
QUICKLY = "made with --quick"

_FILE = {"family", "device", "machine", "groups", "wrong", "absent", "seconds"}
_ROW = {
    *("family", "operation", "sizes", "dtype", "direction", "rounds", "contestants", "left_out", "best", "ours"),
    *("ratios", "limit", "extras", "targets"),
}
_SCALING = {"device", "machine", "quick", "most", "axes", "wrong", "seconds"}

Row = dict[str, Any]


class Unusable(Exception):
    """A file that no table is made from, with the reason."""


@dataclass
class Results:
    """What was measured, and what speaks against publishing it.

    Attributes:
        comparisons: By family and device.
        scaling: By device.
        counters: What the calls farthest from their limit do, by ``benchmarks.counters``.
        digits: ``amkd-distill compare`` on the digits.
        dropped: The same with labels that the student never sees.
        parity: ``benchmarks.attack_parity``.
        machines: Where, when and of what a file was made, by its name.
        doubts: Why a file makes drafts only, by its name.
        analyses: Why a target is missed, by its name: ``misses.md`` beside the folder.
        unread: Files that no table is made from, with the reason.
    """

    comparisons: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    scaling: dict[str, dict[str, Any]] = field(default_factory=dict)
    counters: dict[str, Any] | None = None
    digits: dict[str, Any] | None = None
    dropped: dict[str, Any] | None = None
    parity: dict[str, Any] | None = None
    machines: dict[str, dict[str, Any]] = field(default_factory=dict)
    doubts: dict[str, str] = field(default_factory=dict)
    analyses: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def doubt(self, file: str, reason: str) -> None:
        self.doubts[file] = f"{self.doubts[file]}; {reason}" if file in self.doubts else reason

    def rows(self, device: str, family: str = "") -> list[Row]:
        """The rows of a device, in the order of the families."""
        wanted = [family] if family else FAMILIES
        return [row for name in wanted for row in self.comparisons.get((name, device), {}).get("groups", [])]


def load(folder: Path) -> Results:
    """Everything that tables are made from."""
    found = Results(analyses=read_analyses(folder.parent / "misses.md"))
    for family in FAMILIES:
        for device in DEVICES:
            path = folder / f"{family}-{device}.json"
            if (comparison := _take(path, found, read_comparison)) is not None:
                found.comparisons[family, device] = comparison
                if any(row["rounds"] < Patience().fewest for row in comparison["groups"]):
                    found.doubt(path.name, QUICKLY)
    for device in DEVICES:
        path = folder / f"scaling-{device}.json"
        if (scaling := _take(path, found, read_scaling)) is not None:
            found.scaling[device] = scaling
            if scaling["quick"]:
                found.doubt(path.name, QUICKLY)
    counters = folder / "counters-cpu.json"
    found.counters = _take(counters, found, lambda path: _of_kind(path, "counters", {"machine", "rows"}))
    found.digits = _take(folder / "digits.json", found, read_methods)
    found.dropped = _take(folder / "digits-dropped.json", found, read_methods)
    parity = folder / "attack-parity.json"
    found.parity = _take(parity, found, lambda path: _of_kind(path, "attack_parity", {"machine", "presets", "parity"}))
    return found


def read_comparison(path: Path) -> dict[str, Any]:
    """A file of ``benchmarks.compare``.

    Raises:
        Unusable: It is another kind of file, or something that every table needs is missing.
    """
    found = _of_kind(path, "comparison", _FILE)
    for row in found["groups"]:
        if lacking := _ROW - row.keys():
            raise Unusable(f"a row of {row.get('operation', 'no operation')} lacks {', '.join(sorted(lacking))}")
    return found


def read_methods(path: Path) -> dict[str, Any]:
    """A results.json of ``amkd-distill compare``.

    Raises:
        Unusable: As of :func:`read_comparison`.
    """
    return _of_kind(path, "compare", {"environment", "methods"})


def read_scaling(path: Path) -> dict[str, Any]:
    """A file of ``benchmarks.scaling``.

    Raises:
        Unusable: As of :func:`read_comparison`.
    """
    return _of_kind(path, "scaling", _SCALING)


def read_analyses(path: Path) -> dict[str, str]:
    """The text below each heading ``## NAME`` of a Markdown file, on one line."""
    if not path.exists():
        return {}
    parts = re.split(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)[1:]
    return {name.strip(): " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def key(row: Row) -> tuple[str, ...]:
    """What a row is about."""
    return row["operation"], sizes(row), row["dtype"], row["direction"]


def sizes(row: Row) -> str:
    return ", ".join(f"{name} = {size}" for name, size in row["sizes"].items())


def _take(path: Path, found: Results, read: Any) -> dict[str, Any] | None:
    """The file if it is there and can be used; why not, and what speaks against it, goes into ``found``."""
    if not path.exists():
        return None
    try:
        result = read(path)
    except Unusable as error:
        found.unread[path.name] = str(error)
        return None
    about = found.machines[path.name] = result["machine"] if "machine" in result else _as_machine(result["environment"])
    if about["commit"] is None or about["commit"].endswith("+"):
        found.doubt(path.name, f"made at {about['commit']}, with changes that no commit has")
    return result


def _as_machine(environment: dict[str, Any]) -> dict[str, Any]:
    """The provenance that amkd_fast.distill writes, with the names of benchmarks.machine."""
    commit = environment["commit"]
    if commit is not None:
        commit = commit[:7] + ("+" if commit.endswith("-dirty") else "")
    return {**environment, "commit": commit, "load": None}


def _of_kind(path: Path, kind: str, keys: set[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Unusable(str(error)) from error
    if not isinstance(found, dict) or found.get("kind") != kind:
        raise Unusable(f"no file of kind {kind}: made by another script, or by an older version of it")
    if lacking := keys - found.keys():
        raise Unusable(f"lacks {', '.join(sorted(lacking))}")
    return found
