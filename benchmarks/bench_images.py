"""The images family, side by side in pytest-benchmark; benchmarks/groups/images.py says what is measured."""

from __future__ import annotations

from benchmarks import pytest_groups


@pytest_groups.parametrize("images")
def test_images(benchmark, group, device, direction, title):
    pytest_groups.run(benchmark, group, device, direction, title)
