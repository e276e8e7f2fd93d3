"""The segments family, side by side in pytest-benchmark; benchmarks/groups/segments.py says what is measured."""

from __future__ import annotations

from benchmarks import pytest_groups


@pytest_groups.parametrize("segments")
def test_segments(benchmark, group, device, direction, title):
    pytest_groups.run(benchmark, group, device, direction, title)
