"""Whole attacks, side by side in pytest-benchmark; benchmarks/groups/whole_attack.py says what is measured."""

from __future__ import annotations

from benchmarks import pytest_groups


@pytest_groups.parametrize("whole_attack")
def test_whole_attack(benchmark, group, device, direction, title):
    pytest_groups.run(benchmark, group, device, direction, title)
