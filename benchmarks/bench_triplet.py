"""The triplet family, side by side in pytest-benchmark; benchmarks/groups/triplet.py says what is measured."""

from __future__ import annotations

from benchmarks import pytest_groups


@pytest_groups.parametrize("triplet")
def test_triplet(benchmark, group, device, direction, title):
    pytest_groups.run(benchmark, group, device, direction, title)
