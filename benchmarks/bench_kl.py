"""The KL family: one group for each operation, size, dtype and direction."""

from __future__ import annotations

from functools import lru_cache

import pytest

from benchmarks import contest, measure
from benchmarks.cases import CASES, Case, Field, contestants, prepare


@lru_cache(maxsize=1)  # the cases come one after the other
def _field(case: Case, device: str) -> Field:
    return prepare(case, device)


def _parameters():
    for device in contest.devices():
        for case in CASES:
            for direction in measure.DIRECTIONS:
                for contestant in contestants(case, device):
                    name = f"{case} {device} {direction}-{contestant.name}"
                    yield pytest.param(case, device, direction, contestant.name, id=name)


@pytest.mark.benchmark(max_time=measure.SECONDS, min_rounds=5, disable_gc=True, warmup=False)
@pytest.mark.parametrize(("case", "device", "direction", "name"), list(_parameters()))
def test_kl(benchmark, case, device, direction, name):
    benchmark.group = f"{case} {device} {direction}"
    field = _field(case, device)
    if name in field.left_out:
        pytest.skip(f"{name}: {field.left_out[name]}")
    contestant = next(entry for entry in field.errors if entry.name == name)
    benchmark.extra_info["errors"] = field.errors[contestant]._asdict()
    measure.with_pytest(benchmark, contestant, field.inputs, direction)
