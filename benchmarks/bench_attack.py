"""The attack family, side by side in pytest-benchmark; benchmarks/groups/attack.py says what is measured."""

from __future__ import annotations

from benchmarks import pytest_groups


@pytest_groups.parametrize("attack")
def test_attack(benchmark, group, device, direction, title):
    pytest_groups.run(benchmark, group, device, direction, title)
