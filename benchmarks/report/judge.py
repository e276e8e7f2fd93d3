"""What a row comes to: who is best, what share of the limit is reached, how the group's goals stand.

Files hold what was measured and nothing of this, so that a goal or a yardstick can change without a new measurement.
"""

from __future__ import annotations

from typing import Any

from benchmarks.group import BEST, Goal, Group
from benchmarks.timing import inverse

OUTSIDE = "outside the network"  # an extra: the share of an attack's time
PASSES = "passes"  # what binds where networks do

Row = dict[str, Any]


def judged(row: Row, group: Group | None) -> Row:
    """The row with the names of ``best`` and ``ours``, with ``ratio``, ``share``, ``bound`` and its ``goals``.

    Args:
        row: As :mod:`benchmarks.compare` writes it.
        group: What it is of; None where no group is it any more.
    """
    entries, yardsticks = row["contestants"], set(group.yardsticks if group else ())
    us = {title: entry["us"]["median"] for title, entry in entries.items()}
    others = (
        title
        for title, entry in entries.items()
        if not entry["ours"] and yardsticks.isdisjoint((title, f"{title}: {row['direction']}"))
    )
    mine = (title for title, entry in entries.items() if entry["ours"] and not entry["form"])
    best, ours = (min(titles, key=us.__getitem__, default=None) for titles in (others, mine))
    share = bound = None
    if row["limit"] is not None:
        share, bound = ours and entries[ours]["share_of_limit"], row["limit"]["bound"]
    elif group and group.floor in us:
        share, bound = ours and us[group.floor] / us[ours], PASSES
    elif OUTSIDE in row["extras"]:
        share, bound = 1.0 - row["extras"][OUTSIDE], PASSES
    ratio = row["ratios"][ours][best] if ours and best else None
    found = {**row, "best": best, "ours": ours, "ratio": ratio, "share": share, "bound": bound}
    asked = [goal for goal in (group.goals if group else ()) if goal.direction == row["direction"]]
    return {**found, "goals": [_beside(found, goal) for goal in asked]}


def _beside(row: Row, goal: Goal) -> dict[str, Any]:
    """The goal beside what was measured."""
    found: dict[str, Any] = {**goal._asdict(), "measured": None, "reached": None}
    ours = (name for name, entry in row["contestants"].items() if entry["ours"] and entry["form"] == goal.form)
    own, rival = next(ours, None), row["best"] if goal.rival == BEST else goal.rival
    if own is None:
        return {**found, "reason": "ours is not there"}
    if goal.kind not in ("speed-up", "time"):
        got = {"measured": {"memory": row["contestants"][own]["peak_bytes"], **row["extras"]}[goal.kind]}
    elif (got := row["ratios"][own].get(rival)) is None:
        return {**found, "reason": row["left_out"].get(rival, f"{rival} is not there")}
    else:
        got = inverse(got) if goal.kind == "time" else dict(got)
        got |= {"rival": rival, "measured": got.pop("median")}
    reached = got["measured"] >= goal.bound if goal.kind == "speed-up" else got["measured"] <= goal.bound
    return {**found, **got, "reached": reached}
