"""The files of benchmarks/results, read and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.groups import FAMILIES
from benchmarks.interleave import Patience

DEVICES = ("cpu", "cuda")

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
        digits: ``amkd-distill compare`` on the digits.
        parity: ``benchmarks.attack_parity``.
        doubts: Why a file makes drafts only, by its name.
        unread: Files that no table is made from, with the reason.
    """

    comparisons: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    scaling: dict[str, dict[str, Any]] = field(default_factory=dict)
    digits: dict[str, Any] | None = None
    parity: dict[str, Any] | None = None
    doubts: dict[str, str] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def rows(self, device: str, family: str = "") -> list[Row]:
        """The rows of a device, in the order of the families."""
        wanted = [family] if family else FAMILIES
        return [row for name in wanted for row in self.comparisons.get((name, device), {}).get("groups", [])]


def load(folder: Path) -> Results:
    """Everything that tables are made from."""
    found = Results()
    for family in FAMILIES:
        for device in DEVICES:
            path = folder / f"{family}-{device}.json"
            if (comparison := _take(path, found, read_comparison)) is not None:
                found.comparisons[family, device] = comparison
                if any(row["rounds"] < Patience().fewest for row in comparison["groups"]):
                    found.doubts.setdefault(path.name, "made with --quick")
    for device in DEVICES:
        path = folder / f"scaling-{device}.json"
        if (scaling := _take(path, found, read_scaling)) is not None:
            found.scaling[device] = scaling
            if scaling["quick"]:
                found.doubts.setdefault(path.name, "made with --quick")
    found.digits = _take(
        folder / "digits.json", found, lambda path: _of_kind(path, "compare", {"environment", "methods"})
    )
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


def read_scaling(path: Path) -> dict[str, Any]:
    """A file of ``benchmarks.scaling``.

    Raises:
        Unusable: As of :func:`read_comparison`.
    """
    return _of_kind(path, "scaling", _SCALING)


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
    commit = (result.get("machine") or result["environment"])["commit"]
    if commit is None or commit.endswith(("+", "-dirty")):
        found.doubts[path.name] = f"made at {commit}: with changes that no commit has"
    return result


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
