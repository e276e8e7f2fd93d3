"""The KL family, side by side in pytest-benchmark; benchmarks/groups/kl.py says what is measured."""

from __future__ import annotations

from benchmarks import pytest_groups


@pytest_groups.parametrize("kl")
def test_kl(benchmark, group, device, direction, title):
    pytest_groups.run(benchmark, group, device, direction, title)
