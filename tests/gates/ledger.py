"""What the gates have compiled, so that only what changed is compiled again: a line for every kernel and launch.

An entry's key covers all that its machine code depends on but the architecture, which its figures are listed by. Its
name says which kernel and launch it is, so that it can be compared with what the same was before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .sass import Figures

FOLDER = Path(__file__).parent
RISE = 1.1  # of registers or of the main loop's instructions that is worth a look


class Entry(NamedTuple):
    key: str
    family: str
    name: str
    figures: dict[str, Figures]  # by architecture


class Ledger:
    """The entries of one file, by key; a key of a source has an entry for every kernel in it."""

    def __init__(self, path: Path):
        self.path, self.versions = path, {}
        self.entries: dict[str, list[Entry]] = {}
        lines = path.read_text().splitlines() if path.is_file() else []
        if not lines:
            return
        head = json.loads(lines[0])
        if head["figures"] != list(Figures._fields):
            return  # the figures were others: nothing here answers for what is judged now
        self.versions = head["versions"]
        for line in map(json.loads, lines[1:]):
            figures = {arch: Figures(*numbers) for arch, numbers in line["figures"].items()}
            self.add([Entry(line["key"], line["family"], line["name"], figures)])

    def __iter__(self) -> Iterator[Entry]:
        return (entry for entries in self.entries.values() for entry in entries)

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.entries.setdefault(entry.key, []).append(entry)

    def stale(self, keys: Iterable[str], families: Iterable[str]) -> list[Entry]:
        """Entries of these families under none of these keys: nothing in the tree needs them."""
        keys, families = set(keys), set(families)
        return [entry for entry in self if entry.key not in keys and entry.family in families]

    def write(self) -> None:
        head = {"versions": self.versions, "figures": Figures._fields}
        lines = [json.dumps(head)]
        for entry in sorted(self, key=lambda entry: (entry.family, entry.name, entry.key)):
            lines.append(json.dumps(entry._asdict(), separators=(",", ":")))
        part = self.path.with_suffix(".part")
        part.write_text("\n".join(lines) + "\n")
        os.replace(part, self.path)  # whole or not at all, also when interrupted


def rises(before: Iterable[Entry], after: Iterable[Entry]) -> list[str]:
    """Which kernels' registers or main loops rose by more than a tenth against an entry of the same name."""
    known = {(entry.family, entry.name): entry for entry in before}
    found = []
    for entry in after:
        if (entry.family, entry.name) not in known:
            continue
        earlier = known[entry.family, entry.name].figures
        for arch, figures in entry.figures.items():
            for field in ("registers", "loop"):
                was, now = getattr(earlier.get(arch), field, 0), getattr(figures, field)
                if was and now > RISE * was:
                    found.append(f"sm_{arch} {entry.family} {entry.name}: {field} {was} -> {now}")
    return found
