"""Training steps, side by side in pytest-benchmark; benchmarks/groups/training.py says what is measured."""

from __future__ import annotations

from benchmarks import pytest_groups


@pytest_groups.parametrize("training")
def test_training(benchmark, group, device, direction, title):
    pytest_groups.run(benchmark, group, device, direction, title)
