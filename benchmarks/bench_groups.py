"""The groups in pytest-benchmark: its tables, histograms and comparisons with older runs are of the interleaved rounds.

A group's contestants take turns when its first test runs; each test hands its contestant's rounds to pytest-benchmark,
whose clock (:func:`replayed`) reads them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

import pytest

from benchmarks import contest
from benchmarks.compare import PATIENCE, Comparison
from benchmarks.group import Group
from benchmarks.groups import FAMILIES, groups
from benchmarks.report.judge import judged
from benchmarks.timing import QUICK

_readings: Iterator[float] = iter(())


def replayed() -> float:
    return next(_readings)


def cases() -> Iterator[pytest.ParameterSet]:
    for device in contest.devices():
        for family in FAMILIES:
            for group in groups(family, device):
                for direction in group.directions:
                    for entry in group.contestants(device):
                        name = f"{family} {group} {device} {direction}-{entry.title}"
                        yield pytest.param(group, device, direction, entry.title, id=name)


@cache
def comparison(family: str, device: str, output: Path | None) -> Comparison:
    return Comparison(family, device, output)


@lru_cache(maxsize=1)  # the tests of a group come one after the other
def measured(group: Group, device: str, output: Path | None, quick: bool) -> tuple[dict, dict] | Exception:
    report = comparison(group.family, device, output)
    try:
        rounds = report.add(group, QUICK if quick else PATIENCE[device])
    except Exception as error:  # told by each test of the group, and measured once
        return error
    return rounds, {row["direction"]: row for row in report.found["groups"][-len(rounds) :]}


@pytest.mark.benchmark(timer=replayed, disable_gc=False, warmup=False)
@pytest.mark.parametrize(("group", "device", "direction", "title"), cases())
def test_group(benchmark, pytestconfig, group, device, direction, title):
    """Errors, memory and ratios go into ``extra_info``."""
    global _readings
    benchmark.group = f"{group} {device} {direction}"
    found = measured(group, device, pytestconfig.getoption("results"), pytestconfig.getoption("quick"))
    if isinstance(found, Exception):
        raise found
    rounds, rows = found[0][direction], found[1]
    row = judged(rows[direction], group)
    if title not in rounds:
        pytest.skip(f"{title}: {row['left_out'][title]}")
    ratios = {own: against[title] for own, against in row["ratios"].items() if title in against}
    benchmark.extra_info.update(row["contestants"][title], ratios=ratios, goals=row["goals"])
    _readings = (reading for seconds in rounds[title] for reading in (0.0, seconds))
    benchmark.pedantic(lambda: None, rounds=len(rounds[title]))
