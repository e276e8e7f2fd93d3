"""Everybody against everybody, interleaved: ``python -m benchmarks.compare kl triplet attack``.

The contestants of a group take turns in short blocks, round after round, in an order that changes, so that whatever
else the machine does meets all of them alike. A group is timed only after every contestant's result agreed with fp64.
Ratios are those of the medians; their spread is that of the ratio within a round. One JSON file a family.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks import contest, machine, memory, peers, roofline
from benchmarks.contest import Contestant, WrongResult
from benchmarks.group import BEST, SHORT, Field, Group, Target, no_gradient, prepare
from benchmarks.groups import FAMILIES, groups
from benchmarks.interleave import QUICK, Patience, interleave, ratio, spread
from benchmarks.measure import block_length
from benchmarks.roofline import Limit

US = 1e6
PATIENCE = {"cpu": Patience(), "cuda": Patience(rounds=15, seconds=0.5)}  # a GPU that is nobody else's is quiet


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", choices=[*FAMILIES, []], metavar="FAMILY", help=", ".join(FAMILIES))
    parser.add_argument("--output", type=Path, default=machine.RESULTS, help="folder of <family>-<device>.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="groups whose name contains this; the file is not written")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="no group begins after them; past half, the fewest rounds"
    )
    parser.add_argument("--quick", action="store_true", help="two rounds: shows that it runs, not how fast")
    options = parser.parse_args(arguments)
    machine.use_threads()
    time_left, wrong = Clock(options.seconds), []
    for family in options.families or FAMILIES:
        path = None if options.only or options.quick else options.output / f"{family}-{options.device}.json"
        result = compare_family(family, options.device, options.only, time_left, options.quick, path)
        wrong += result["wrong"]
    for line in wrong:
        print(f"WRONG, not timed: {line}")
    return 1 if wrong else 0


class Clock:
    """How much of the time is gone: 0 now, 1 after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self._start, self._seconds = time.perf_counter(), seconds

    def __call__(self) -> float:
        return (time.perf_counter() - self._start) / self._seconds


def compare_family(
    family: str, device: str, only: str, gone: Clock, quick: bool, path: Path | None = None
) -> dict[str, Any]:
    """What the JSON file of a family holds; one line a group and direction is printed on the way.

    The file at ``path`` is written after each group, so that a run which is stopped leaves what it has.
    """
    start = time.perf_counter()
    found: dict[str, Any] = {
        "kind": "comparison",
        "family": family,
        "device": device,
        "machine": machine.describe(),
        "tf32": {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32},
        "groups": [],
        "wrong": [],
        "not_reached": [],
        "absent": {**peers.missing(device), **contest.missing(family, device)},
    }
    print(f"\n{family}: {machine.in_words(found['machine'])}", flush=True)
    for group in groups(family, device):
        if only not in str(group):
            continue
        if gone() > 1:
            found["not_reached"].append(str(group))
            continue
        patience = QUICK if quick else PATIENCE[device]
        if gone() > 0.5:
            patience = patience._replace(most=0.0)
        try:
            for row in compare(group, device, patience):
                found["groups"].append(row)
                print(line(row), flush=True)
        except WrongResult as error:
            found["wrong"].append(f"{group}: {error}")
        except Exception as error:  # as a GPU is there for minutes, one group must not take the others with it
            if device == "cpu":
                raise
            traceback.print_exc()
            found["wrong"].append(f"{group}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        found["seconds"] = time.perf_counter() - start
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
    for name in found["not_reached"]:
        print(f"not reached in time: {name}")
    return {**found, "seconds": time.perf_counter() - start}


def compare(group: Group, device: str, patience: Patience) -> list[dict[str, Any]]:
    """Check and time a group; one row a direction."""
    field = prepare(group, device)
    with no_gradient(field.inputs):
        peaks = {entry: peak_bytes(entry, group, field, device) for entry in field.errors}
        extras = group.extras(device) if group.extras else {}
        rows = [timed(group, device, direction, field, patience) for direction in group.directions]
    for row in rows:
        row["extras"] = extras
        for entry in field.errors:
            row["contestants"][entry.title]["peak_bytes"] = peaks[entry]
        row["targets"] = [judged(row, target) for target in group.targets if target.direction == row["direction"]]
    return rows


def race(
    group: Group, device: str, direction: str, field: Field, patience: Patience
) -> tuple[Limit | None, dict[Contestant, int], dict[Contestant, list[float]]]:
    """The limit, the calls of a block, and the seconds of a call in every round."""
    entries = list(field.errors)
    gc.collect()
    gc.disable()
    try:
        limit = roofline.limit(group.work[direction], group.dtype, device) if direction in group.work else None
        lengths = {entry: block_length(entry, field.inputs, patience.block, direction) for entry in entries}
        times = interleave(entries, field.inputs, lengths, patience, direction)
    finally:
        gc.enable()
    return limit, lengths, times


def timed(group: Group, device: str, direction: str, field: Field, patience: Patience) -> dict[str, Any]:
    """The times of one direction, with ours against each of the others and against the limit."""
    entries = list(field.errors)
    limit, lengths, times = race(group, device, direction, field, patience)

    def median(entry: Contestant) -> float:
        return statistics.median(times[entry])

    mine = [entry for entry in entries if entry.ours]
    others = [entry for entry in entries if not entry.ours]
    equals = [entry for entry in others if entry.name not in group.yardsticks]
    row: dict[str, Any] = {
        "family": group.family,
        "operation": group.operation,
        "sizes": group.sizes,
        "dtype": SHORT[group.dtype],
        "direction": direction,
        "rounds": len(times[entries[0]]),
        "contestants": {
            entry.title: {
                "ours": entry.ours,
                "form": entry.form,
                "us": spread(times[entry], US),
                "calls_a_block": lengths[entry],
                **field.errors[entry]._asdict(),
                "share_of_limit": limit and limit.share(median(entry)),
            }
            for entry in entries
        },
        "left_out": field.left_out,
        "best": min(equals, key=median).title if equals else None,
        "ours": None,
        "ratios": {own.title: {other.title: ratio(times[other], times[own]) for other in others} for own in mine},
        "limit": limit and {**group.work[direction]._asdict(), **limit._asdict()},
    }
    public = [entry for entry in mine if not entry.form]
    return {**row, "ours": min(public, key=median).title} if public else row


def peak_bytes(entry: Contestant, group: Group, field: Field, device: str) -> int:
    """Of forward, with backward where there is one."""
    backward = "both" in group.directions

    def call() -> None:
        result = entry.call(*field.inputs)
        if backward:
            field.inputs[0].grad = None
            result.backward()

    with entry.chosen():
        return memory.peak_bytes(call, device)


def judged(row: dict[str, Any], target: Target) -> dict[str, Any]:
    """The target beside what was measured."""
    found: dict[str, Any] = {**target._asdict(), "measured": None, "reached": None}
    own = next(
        (name for name, entry in row["contestants"].items() if entry["ours"] and entry["form"] == target.form), None
    )
    if target.kind in ("speed-up", "time"):
        rival = row["best"] if target.rival == BEST else target.rival
        got = row["ratios"].get(own, {}).get(rival)
        if got is None:
            return {**found, "reason": row["left_out"].get(rival, f"{rival} or ours is not there")}
        if target.kind == "time":
            got = {"median": 1 / got["median"], "p10": 1 / got["p90"], "p90": 1 / got["p10"]}
        found |= {"rival": rival, "measured": got["median"], "p10": got["p10"], "p90": got["p90"]}
    elif target.kind == "memory":
        found["measured"] = row["contestants"][own]["peak_bytes"] if own else None
    else:
        found["measured"] = row["extras"].get(target.kind)
    if found["measured"] is None:
        return {**found, "reason": "ours is not there"}
    at_least = target.kind == "speed-up"
    found["reached"] = found["measured"] >= target.bound if at_least else found["measured"] <= target.bound
    return found


def line(row: dict[str, Any]) -> str:
    """A row in short: ours, the best of the others, the limit, the targets."""
    sizes = ", ".join(f"{name} {size}" for name, size in row["sizes"].items())
    text = f"{row['operation']:26}{sizes:22}{row['dtype']:5}{row['direction']:9}"
    if row["ours"] is None:
        return text + " ours is not there"
    ours = row["contestants"][row["ours"]]
    text += f"{ours['us']['median']:11.1f} µs"
    if row["best"] is not None:
        got = row["ratios"][row["ours"]][row["best"]]
        text += f"{got['median']:7.2f}× ({got['p10']:.2f}–{got['p90']:.2f}) {row['best']:24}"
    if row["limit"] is not None:
        text += f"{ours['share_of_limit']:6.1%} of the limit ({row['limit']['bound']})"
    for target in row["targets"]:
        mark = {True: "reached", False: "MISSED", None: "not judged"}[target["reached"]]
        measured = "" if target["measured"] is None else f"{target['measured']:.3g} for "
        text += f"; {target['kind']} {measured}{target['bound']:g} {mark}"
    return text


if __name__ == "__main__":
    sys.exit(main())
