"""One adversarial step on [64, 3, 32, 32]: the reference and eager PyTorch; fast kernels join by being available."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

import amkd_fast as af
from benchmarks import contest, measure, peers

SHAPE = (64, 3, 32, 32)
STEP_SIZE, EPS, LOWER, UPPER = 2 / 255, 8 / 255, 0.0, 1.0
BOUNDARY_STEP_SIZE = 0.3


def linf(x, grad, clean):
    return af.attack_step(x, grad, x0=clean, step_size=STEP_SIZE, eps=EPS, lower=LOWER, upper=UPPER)


def boundary(x, grad, gap):
    return af.attack_step(x, grad, step_size=BOUNDARY_STEP_SIZE, norm="boundary", gap=gap, lower=LOWER, upper=UPPER)


def _contestants(norm, device):
    call = {"linf": linf, "boundary": boundary}[norm]
    eager = peers.pgd_step(STEP_SIZE, EPS, LOWER, UPPER)
    if norm == "boundary":
        eager = peers.boundary_step(BOUNDARY_STEP_SIZE, LOWER, UPPER)
    return [contest.reference(call), *eager, *contest.ours("attack", call, device)]


@lru_cache(maxsize=1)
def _field(norm, device):
    torch._dynamo.reset()
    draws = torch.Generator().manual_seed(0)
    clean, noise = torch.rand(SHAPE, generator=draws), torch.rand(SHAPE, generator=draws)
    x = (clean + EPS * (2 * noise - 1)).clamp(LOWER, UPPER)
    grad = torch.randn(SHAPE, generator=draws)
    third = clean if norm == "linf" else 10 * torch.rand(SHAPE[0], generator=draws)
    inputs = tuple(part.to(device) for part in (x, grad, third))
    entries = _contestants(norm, device)
    return inputs, contest.truth(entries[0].call, inputs), {entry.name: entry for entry in entries}


def _parameters():
    for device in contest.devices():
        for norm in ("linf", "boundary"):
            for contestant in _contestants(norm, device):
                yield pytest.param(norm, device, contestant.name, id=f"{norm} {device}-{contestant.name}")


@pytest.mark.benchmark(max_time=measure.SECONDS, min_rounds=5, disable_gc=True, warmup=False)
@pytest.mark.parametrize(("norm", "device", "name"), list(_parameters()))
def test_step(benchmark, norm, device, name):
    benchmark.group = f"attack step {norm} {list(SHAPE)} fp32 {device}"
    inputs, expected, entries = _field(norm, device)
    benchmark.extra_info["errors"] = contest.verify(entries[name], inputs, expected)._asdict()
    measure.with_pytest(benchmark, entries[name], inputs, "forward")
