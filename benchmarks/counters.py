"""Why the slowest calls are slow: instructions, page faults and waiting, ``python -m benchmarks.counters``.

Takes the calls of ours that are furthest from their limit in results/*-cpu.json. Instructions are counted by valgrind's
callgrind on one thread, in whole calls after a warm-up, and told by the library that they belong to; page faults,
context switches, user and system time come from the kernel, at the suite's number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import contest, groups, machine
from benchmarks.contest import Contestant
from benchmarks.group import SHORT, Group, no_gradient
from benchmarks.measure import block, block_length

CALLS, WARM_UP = 20, 5
SECONDS = 0.5  # of calls that are watched
PLACES = (
    ("amkd_fast kernels", "amkd_fast/_C"),
    ("PyTorch", "libtorch"),
    ("PyTorch", "libc10"),
    ("OpenMP", "libgomp"),
    ("C library", "libc.so"),
    ("C library", "libm.so"),
    ("C library", "ld-linux"),
    ("C++ library", "libstdc++"),
    ("Python", "python"),
)
_COST = re.compile(r"^\s*([\d,]+) (?:\([^)]*\) )?(\S.*)$")
_OBJECT = re.compile(r"\[([^\]]+)\]$")


def slowest(results: Path, count: int) -> list[dict[str, Any]]:
    """The groups whose public function is furthest from its limit, by their last direction: all of the call."""
    rows = {}
    for path in sorted(results.glob("*-cpu.json")):
        report = json.loads(path.read_text())
        for row in report.get("groups", ()) if report.get("kind") == "comparison" else ():
            if row["limit"] is not None and row["ours"] is not None:
                share = row["contestants"][row["ours"]]["share_of_limit"]
                rows[row["family"], _name(row)] = {**row, "share": share}
    return sorted(rows.values(), key=lambda row: row["share"])[:count]


def _name(row: dict[str, Any]) -> str:
    return ", ".join([row["operation"], *(f"{name} = {size}" for name, size in row["sizes"].items()), row["dtype"]])


def find(family: str, name: str) -> Group:
    """The group that a row is of.

    Raises:
        ValueError: There is none, or another dtype's.
    """
    for group in groups.groups(family):
        if str(group) == name and name.endswith(SHORT[group.dtype]):
            return group
    raise ValueError(f"{name!r}: not a group of {family!r}")


def usage(group: Group, direction: str) -> dict[str, float]:
    """Of one call on the suite's threads: seconds, user and system time, minor page faults, context switches."""
    entry, inputs = _ready(group)
    with no_gradient(inputs):
        count = block_length(entry, inputs, SECONDS, direction)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        block(entry, inputs, count, direction)
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    calls = count + (count > 1)
    return {
        "us": 1e6 * seconds / calls,
        "user_us": 1e6 * (after.ru_utime - before.ru_utime) / calls,
        "system_us": 1e6 * (after.ru_stime - before.ru_stime) / calls,
        "page_faults": (after.ru_minflt - before.ru_minflt) / calls,
        "switches": (after.ru_nvcsw + after.ru_nivcsw - before.ru_nvcsw - before.ru_nivcsw) / calls,
    }


def instructions(family: str, name: str, direction: str) -> dict[str, Any]:
    """Of one call on one thread, by library, and the functions that take the most."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        command += [sys.executable, "-m", "benchmarks.counters", "--watched", family, name, direction]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, cwd=machine.ROOT, env=environment, capture_output=True)
        written = [path for path in Path(folder).iterdir() if path.stat().st_size]
        lines = _annotated(max(written, key=lambda path: path.stat().st_size))
    return tally(lines, CALLS)


def _annotated(path: Path) -> list[str]:
    command = ["callgrind_annotate", "--threshold=100", str(path)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def tally(lines: list[str], calls: int) -> dict[str, Any]:
    """callgrind_annotate's list of functions, summed over libraries, per call."""
    places: dict[str, float] = {}
    functions: dict[str, float] = {}
    for line in lines:
        cost, where = _COST.match(line), _OBJECT.search(line)
        if cost is None or where is None:
            continue
        count = int(cost.group(1).replace(",", "")) / calls
        place = next((place for place, part in PLACES if part in where.group(1)), "other")
        places[place] = places.get(place, 0.0) + count
        function = _OBJECT.sub("", cost.group(2)).split(":", 1)[-1].strip()
        functions[f"{place}: {function}"] = functions.get(f"{place}: {function}", 0.0) + count
    ranked = sorted(functions, key=functions.get, reverse=True)
    return {
        "all": sum(places.values()),
        "by_library": dict(sorted(places.items(), key=lambda item: -item[1])),
        "functions": {name: functions[name] for name in ranked[:8]},
    }


def watched(group: Group, direction: str) -> None:
    """What runs under callgrind: a warm-up, then the calls that are counted."""
    torch.set_num_threads(1)
    entry, inputs = _ready(group)
    block(entry, inputs, WARM_UP, direction)
    _instrument("on")
    for _ in range(CALLS):
        block(entry, inputs, 1, direction)
    _instrument("off")


def _instrument(state: str) -> None:
    subprocess.run(["callgrind_control", "-i", state, str(os.getpid())], check=True, capture_output=True)


def _ready(group: Group) -> tuple[Contestant, tuple[Any, ...]]:
    return contest.ours(group.family, group.ours, "cpu")[0], group.inputs("cpu")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counters", description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=machine.RESULTS, help="folder of <family>-cpu.json")
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--watched", nargs=3, metavar=("FAMILY", "NAME", "DIRECTION"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.watched:
        family, name, direction = options.watched
        watched(find(family, name), direction)
        return 0
    if shutil.which("valgrind") is None:
        print("valgrind is not there", file=sys.stderr)
        return 2
    machine.use_threads()
    rows = []
    for row in slowest(options.results, options.count):
        name, direction = _name(row), row["direction"]
        print(f"{name}, {direction}: {row['share']:.1%} of the limit ({row['limit']['bound']})", flush=True)
        found = usage(find(row["family"], name), direction)
        found["instructions"] = instructions(row["family"], name, direction)
        rows.append({"name": name, "direction": direction, "share": row["share"], "limit": row["limit"], **found})
        print("  " + _line(rows[-1]), flush=True)
    report = {"kind": "counters", "machine": machine.describe(), "rows": rows}
    (options.results / "counters-cpu.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _line(row: dict[str, Any]) -> str:
    parts = ", ".join(f"{place} {count:,.0f}" for place, count in row["instructions"]["by_library"].items())
    return (
        f"{row['us']:.1f} µs (user {row['user_us']:.1f}, system {row['system_us']:.1f}), {row['page_faults']:.1f} page "
        f"faults, {row['switches']:.2f} switches; {row['instructions']['all']:,.0f} instructions: {parts}"
    )


if __name__ == "__main__":
    sys.exit(main())
