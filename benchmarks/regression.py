"""What got slower from one comparison to the next: ``python -m benchmarks.regression OLD.json NEW.json``.

Ours is judged against the reference of the same run, or the best of the others where there is none: what the machine
does to both cancels. Where nobody else is there the bare time is judged. A change counts only past the margin, and
only where the intervals from the 10th to the 90th percentile do not touch either. Exit code 1: something got slower;
2: the files cannot be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report.load import Row, Unusable, key, read_comparison
from benchmarks.report.words import inverse, ratio, table, times

SAME = ("cpu", "gpu", "threads")  # of the machine


class Change(NamedTuple):
    """One of ours in one row, before and after.

    Attributes:
        factor: New over old, above 1 where ours got slower: against ``rival``, or of the bare time without one.
        counts: Whether it is past the margin and outside of the spread.
    """

    case: tuple[str, ...]
    title: str
    rival: str | None
    factor: float
    counts: bool
    old: dict[str, Any]
    new: dict[str, Any]
    us: tuple[dict[str, float], dict[str, float]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--margin", type=float, default=0.10, help="of a change that counts; 0.10 is ten per cent")
    options = parser.parse_args(arguments)
    try:
        old, new = read_comparison(options.old), read_comparison(options.new)
    except Unusable as error:
        print(f"cannot be compared: {error}")
        return 2
    if different := differences(old, new):
        print(f"cannot be compared: {'; '.join(different)}")
        return 2
    if old["machine"]["torch"] != new["machine"]["torch"]:
        print(f"torch {old['machine']['torch']} before, {new['machine']['torch']} now: the others may have changed too")
    for line in missing(old, new):
        print(line)
    found = [change for change in changes(old, new, options.margin) if change.counts]
    slower = [change for change in found if change.factor > 1]
    if found:
        header = ("case", "ours", "change", "against", "ratio before", "ratio now", "time before", "time now")
        print(table(header, [_row(change) for change in sorted(found, key=lambda change: -change.factor)]))
    print(f"{len(slower)} slower, {len(found) - len(slower)} faster by more than {options.margin:.0%}")
    return 1 if slower else 0


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Why the numbers of two files have nothing to do with each other."""
    found = [f"{name}: {old[name]} and {new[name]}" for name in ("family", "device") if old[name] != new[name]]
    about = ((name, old["machine"][name], new["machine"][name]) for name in SAME)
    return found + [f"{name}: {before} and {after}" for name, before, after in about if before != after]


def missing(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Rows, and contestants of ours, that only one of the files has."""
    before, after = (
        {(key(row), title) for row in file["groups"] for title in (*_ours(row), None)} for file in (old, new)
    )

    def names(lost: set[tuple[tuple[str, ...], str | None]]) -> Iterator[str]:
        rows = {case for case, title in lost if title is None}
        for case, title in sorted(lost, key=str):
            if title is None or case not in rows:
                yield ", ".join(case) + (f": {title}" if title else "")

    return [f"only before: {name}" for name in names(before - after)] + [
        f"only now: {name}" for name in names(after - before)
    ]


def changes(old: dict[str, Any], new: dict[str, Any], margin: float) -> list[Change]:
    """Every row and contestant of ours that both have."""
    after = {key(row): row for row in new["groups"]}
    return [
        change(row, after[key(row)], title, margin)
        for row in old["groups"]
        if key(row) in after
        for title in _ours(row)
        if title in _ours(after[key(row)])
    ]


def change(old: Row, new: Row, title: str, margin: float) -> Change:
    us = old["contestants"][title]["us"], new["contestants"][title]["us"]
    there = old["ratios"][title].keys() & new["ratios"][title].keys()
    rival = next((name for name in ("reference", old["best"], new["best"]) if name in there), None)
    # Ours over theirs, so that more is slower, as with times.
    before, after = us if rival is None else (inverse(row["ratios"][title][rival]) for row in (old, new))
    factor = after["median"] / before["median"]
    apart = after["p10"] > before["p90"] if factor > 1 else after["p90"] < before["p10"]
    counts = apart and max(factor, 1 / factor) > 1 + margin
    return Change(key(old), title, rival, factor, counts, before, after, us)


def _ours(row: Row) -> list[str]:
    return [title for title, entry in row["contestants"].items() if entry["ours"]]


def _row(change: Change) -> tuple[str, ...]:
    ratios = ("", "") if change.rival is None else (ratio(inverse(change.old)), ratio(inverse(change.new)))
    bare = (times(us) for us in change.us)
    return ", ".join(change.case), change.title, f"{change.factor - 1:+.0%}", change.rival or "", *ratios, *bare


if __name__ == "__main__":
    sys.exit(main())
