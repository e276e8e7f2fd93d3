"""Everybody against everybody, interleaved: ``python -m benchmarks.compare kl triplet attack``.

A group is timed only after every contestant's result agreed with fp64. Ratios are those of the medians; their spread is
that of the ratio within a round. One JSON file a family. ``pytest benchmarks`` measures the same in the same way.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks import baselines, contest, machine, memory, roofline
from benchmarks.contest import Contestant, WrongResult
from benchmarks.group import SHORT, Field, Group, prepare
from benchmarks.groups import FAMILIES, groups
from benchmarks.report import goals, words
from benchmarks.report.judge import judged
from benchmarks.timing import QUICK, Patience, Rounds, interleave, ratio, spread

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
    start, wrong = time.perf_counter(), []
    for family in options.families or FAMILIES:
        output = None if options.only or options.quick else options.output
        report = Comparison(family, options.device, output)
        for group in groups(family, options.device):
            if options.only not in str(group):
                continue
            gone = (time.perf_counter() - start) / options.seconds
            if gone > 1:
                print(f"not reached in time: {group}")
                report.found["not_reached"].append(str(group))
                continue
            patience = QUICK if options.quick else PATIENCE[options.device]
            try:
                report.add(group, patience._replace(most=0.0) if gone > 0.5 else patience)
            except Exception as error:  # as a GPU is there for minutes, one group must not take the others with it
                if options.device == "cpu" and not isinstance(error, WrongResult):
                    raise
                traceback.print_exc()
        report.write()
        wrong += report.found["wrong"]
    for line in wrong:
        print(f"WRONG, not timed: {line}")
    return 1 if wrong else 0


class Comparison:
    """What the JSON file of a family holds; it is written after each group, so that a run which is stopped leaves some.

    Args:
        output: The folder of the file; None for none.
    """

    def __init__(self, family: str, device: str, output: Path | None = None) -> None:
        self._start, self._path = time.perf_counter(), output and output / f"{family}-{device}.json"
        flags = {"convolutions": torch.backends.cudnn.allow_tf32, "products": torch.backends.cuda.matmul.allow_tf32}
        self.found: dict[str, Any] = {
            **{"kind": "comparison", "family": family, "device": device, "machine": machine.describe(), "tf32": flags},
            **{"groups": [], "wrong": [], "not_reached": []},
            "absent": {**baselines.missing(device), **contest.missing(family, device)},
        }
        print(f"\n{family}: {machine.in_words(self.found['machine'])}", flush=True)

    def add(self, group: Group, patience: Patience) -> dict[str, dict[str, list[float]]]:
        """Check and time a group, print a line a direction; the seconds of every round, by direction and contestant.

        Raises:
            WrongResult: One of ours is wrong, which the file says. So does it of any other error.
        """
        device, rounds = self.found["device"], {}
        try:
            field = prepare(group, device)
            peaks = {entry: peak_bytes(entry, group, field, device) for entry in field.errors}
            extras = group.extras(field.inputs)
            for direction in group.directions:
                row, times = timed(group, device, direction, field, patience, peaks)
                self.found["groups"].append({**row, "extras": extras})
                rounds[direction] = {entry.title: seconds for entry, seconds in times.seconds.items()}
                print(line(judged(self.found["groups"][-1], group)), flush=True)
        except Exception as error:
            name = "" if isinstance(error, WrongResult) else f"{type(error).__name__}: "
            self.found["wrong"].append(f"{group}: {name}{' '.join(str(error).split())[:200]}")
            raise
        finally:
            self.write()
        return rounds

    def write(self) -> None:
        self.found["seconds"] = time.perf_counter() - self._start
        if self._path is not None:
            machine.write(self._path, self.found)


def timed(
    group: Group, device: str, direction: str, field: Field, patience: Patience, peaks: dict[Contestant, int]
) -> tuple[dict[str, Any], Rounds]:
    """The times of one direction, with ours against each of the others and against the limit."""
    entries = list(field.errors)
    limit = roofline.limit(group.work[direction], group.dtype, device) if direction in group.work else None
    times = interleave(entries, field.inputs, patience, direction)

    def median(entry: Contestant) -> float:
        return statistics.median(times.seconds[entry])

    mine, others = ([entry for entry in entries if entry.ours is own] for own in (True, False))
    row = {
        **{"family": group.family, "operation": group.operation, "sizes": group.sizes, "dtype": SHORT[group.dtype]},
        **{"direction": direction, "rounds": len(times.seconds[entries[0]])},
        "contestants": {
            entry.title: {
                **{"ours": entry.ours, "form": entry.form, "us": spread(times.seconds[entry], US)},
                **{"calls_a_block": times.calls[entry], **field.errors[entry]._asdict()},
                **{"share_of_limit": limit and limit.seconds / median(entry), "peak_bytes": peaks[entry]},
            }
            for entry in entries
        },
        "left_out": field.left_out,
        "ratios": {
            own.title: {other.title: ratio(times.seconds[other], times.seconds[own]) for other in others}
            for own in mine
        },
        "limit": limit and {**group.work[direction]._asdict(), **limit._asdict()},
    }
    return row, times


def peak_bytes(entry: Contestant, group: Group, field: Field, device: str) -> int:
    """Of forward, with backward where there is one."""

    def call() -> None:
        result = entry.call(*field.inputs)
        if "both" in group.directions:
            contest.drop_grads(field.inputs)
            result.backward()

    with entry.chosen():
        peak = memory.peak_bytes(call, device)
    contest.drop_grads(field.inputs)
    return peak


def line(row: dict[str, Any]) -> str:
    """A row in short: ours, the best of the others, the limit, the goals."""
    if row["ours"] is None:
        return f"{words.case(row)}: ours is not there"
    ours = row["contestants"][row["ours"]]
    text = f"{words.case(row):64}{words.time(ours['us']['median']):>9}"
    if row["best"] is not None:
        text += f"{words.ratio(row['ratios'][row['ours']][row['best']]):>20}× {row['best']:24}"
    if row["share"] is not None:
        text += f"{words.share(row['share']):>6} of the limit ({row['bound']})"
    return text + "".join(f"; {goals.sentence(goal)}" for goal in row["goals"])


if __name__ == "__main__":
    sys.exit(main())
