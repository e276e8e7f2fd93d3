"""Adversarial steps, the objective and the choice of bases: reference, eager PyTorch, and whatever fast kernel runs."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from benchmarks import attack_cases, contest, measure
from benchmarks.attack_cases import Case

CASES = (
    *(Case(operation, (count, 3, 32, 32)) for count in (64, 256) for operation in ("linf", "boundary")),
    Case("objective", (64, 10)),
    Case("objective", (256, 100)),
    Case("bases", (256, 10)),
    Case("bases", (256, 100)),
)


def _contestants(case, device):
    call = attack_cases.call(case)
    return [contest.reference(call), *attack_cases.rivals(case), *contest.ours("attack", call, device)]


@lru_cache(maxsize=1)
def _field(number, device):
    torch._dynamo.reset()
    case = CASES[number]
    inputs = attack_cases.inputs(case, device)
    return inputs, attack_cases.truth(case, inputs), {entry.name: entry for entry in _contestants(case, device)}


def _parameters():
    for device in contest.devices():
        for number, case in enumerate(CASES):
            for contestant in _contestants(case, device):
                yield pytest.param(number, device, contestant.name, id=f"{case} {device}-{contestant.name}")


@pytest.mark.benchmark(max_time=measure.SECONDS, min_rounds=5, disable_gc=True, warmup=False)
@pytest.mark.parametrize(("number", "device", "name"), list(_parameters()))
def test_attack(benchmark, number, device, name):
    benchmark.group = f"attack {CASES[number]} {device}"
    inputs, expected, entries = _field(number, device)
    benchmark.extra_info["errors"] = attack_cases.verify(entries[name], inputs, expected)._asdict()
    measure.with_pytest(benchmark, entries[name], inputs, "forward")
