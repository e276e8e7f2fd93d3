"""The relations family, side by side in pytest-benchmark; benchmarks/groups/relations.py says what is measured."""

from __future__ import annotations

from benchmarks import pytest_groups


@pytest_groups.parametrize("relations")
def test_relations(benchmark, group, device, direction, title):
    pytest_groups.run(benchmark, group, device, direction, title)
