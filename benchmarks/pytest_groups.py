"""The groups of a family as pytest-benchmark tests: one group for each operation, size, dtype and direction."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest

from benchmarks import contest, groups, measure
from benchmarks.compare import peak_bytes
from benchmarks.group import Field, Group, prepare


@lru_cache(maxsize=1)  # the groups come one after the other
def _field(group: Group, device: str) -> Field:
    return prepare(group, device)


def parametrize(family: str) -> Callable[[Callable], Callable]:
    """The mark of a test of ``(benchmark, group, device, direction, title)``, which calls :func:`run`."""
    cases = [
        pytest.param(group, device, direction, entry.title, id=f"{group} {device} {direction}-{entry.title}")
        for device in contest.devices()
        for group in groups.groups(family, device)
        for direction in group.directions
        for entry in group.contestants(device)
    ]
    mark = pytest.mark.benchmark(max_time=measure.SECONDS, min_rounds=5, disable_gc=True, warmup=False)
    return lambda test: mark(pytest.mark.parametrize(("group", "device", "direction", "title"), cases)(test))


def run(benchmark: Any, group: Group, device: str, direction: str, title: str) -> None:
    """Check the contestant, then time it; its errors and its peak of memory go into ``extra_info``."""
    benchmark.group = f"{group} {device} {direction}"
    field = _field(group, device)
    if title in field.left_out:
        pytest.skip(f"{title}: {field.left_out[title]}")
    entry = next(entry for entry in field.errors if entry.title == title)
    benchmark.extra_info["errors"] = field.errors[entry]._asdict()
    benchmark.extra_info["peak_bytes"] = peak_bytes(entry, group, field, device)
    measure.with_pytest(benchmark, entry, field.inputs, direction)
