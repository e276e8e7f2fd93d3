"""What each SIMD level of the CPU is worth to our kernels: ``python -m benchmarks.levels``, a table in Markdown.

A process has one level, so processes of the levels take turns. Every operation is called forward, without a graph.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

import torch
from torch import Tensor

from amkd_fast import backends
from benchmarks.contest import ours
from benchmarks.groups import groups
from benchmarks.timing import block, block_length

FAMILIES = ("kl", "triplet", "attack", "images", "segments", "relations")
LEVEL = "AMKD_FAST_SIMD"
BLOCK, BLOCKS = 4e-3, 7  # seconds of a reading, readings of an operation in one process
MOST = 8192  # rows or classes; larger cases show what these do, in seconds a call


def read(families: list[str]) -> dict[str, float]:
    """Microseconds a call at this process's level, by the group's name."""
    found = {}
    for group in (group for family in families for group in groups(family, "cpu")):
        if max(group.sizes.values()) > MOST:
            continue
        inputs = tuple(x.detach() if isinstance(x, Tensor) else x for x in group.inputs("cpu"))
        (entry,) = (entry for entry in ours(group.family, group.ours, "cpu") if entry.backend == "cpu")
        with torch.no_grad():
            count = block_length(entry, inputs, BLOCK, "forward")
            found[str(group)] = 1e6 * statistics.median(block(entry, inputs, count, "forward") for _ in range(BLOCKS))
    return found


def read_at(level: str, families: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.levels", "--read", *families]
    done = subprocess.run(command, env={**os.environ, LEVEL: level}, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.levels", description=__doc__)
    parser.add_argument("families", nargs="*", default=FAMILIES, metavar="FAMILY")
    parser.add_argument("--turns", type=int, default=5, help="processes of each level")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    families = list(options.families)
    if options.read:
        print(json.dumps(read(families)))
        return
    build = backends.build_info()
    if build is None:
        parser.error("the extension is not built")
    levels = list(build["simd_usable"])
    turns = [{level: read_at(level, families) for level in levels} for _ in range(options.turns)]
    top = levels[-1]
    print(f"| µs a call | {' | '.join(levels)} | {' | '.join(f'{level} / {top}' for level in levels[:-1])} |")
    print("| --- |" + " --- |" * (2 * len(levels) - 1))
    for name in turns[0][top]:
        times = [statistics.median(turn[level][name] for turn in turns) for level in levels]
        ratios = [statistics.median(turn[level][name] / turn[top][name] for turn in turns) for level in levels[:-1]]
        cells = [*(f"{time:.3g}" for time in times), *(f"{ratio:.2f}" for ratio in ratios)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
