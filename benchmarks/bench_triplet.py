"""Batch-hard triplets: the reference and the distance matrix of torch.cdist; fast kernels join by being available."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

import amkd_fast as af
from benchmarks import contest, measure, peers

MARGIN = 1.0
SIZES = ((128, 128), (1024, 128))
CLASSES = 16


def batch_hard(rows, labels):
    return af.triplet_margin_loss(rows, labels, margin=MARGIN)


def _contestants(device):
    return [contest.reference(batch_hard), *peers.batch_hard(MARGIN), *contest.ours("triplet", batch_hard, device)]


@lru_cache(maxsize=1)
def _field(count, width, device):
    torch._dynamo.reset()
    draws = torch.Generator().manual_seed(0)
    rows = torch.randn(count, width, generator=draws).to(device).requires_grad_()
    inputs = rows, (torch.arange(count) % CLASSES).to(device)
    return inputs, contest.truth(batch_hard, inputs), {entry.name: entry for entry in _contestants(device)}


def _parameters():
    for device in contest.devices():
        for size in SIZES:
            for direction in measure.DIRECTIONS:
                for contestant in _contestants(device):
                    name = f"{list(size)} {device} {direction}-{contestant.name}"
                    yield pytest.param(*size, device, direction, contestant.name, id=name)


@pytest.mark.benchmark(max_time=measure.SECONDS, min_rounds=5, disable_gc=True, warmup=False)
@pytest.mark.parametrize(("count", "width", "device", "direction", "name"), list(_parameters()))
def test_batch_hard(benchmark, count, width, device, direction, name):
    benchmark.group = f"triplet hard [{count}, {width}] fp32 {device} {direction}"
    inputs, expected, entries = _field(count, width, device)
    benchmark.extra_info["errors"] = contest.verify(entries[name], inputs, expected)._asdict()
    measure.with_pytest(benchmark, entries[name], inputs, direction)
