"""Augmented batches of CIFAR's size out of a data set in memory: reference, eager PyTorch, compiled, and ours."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch.nn import functional as F

import amkd_fast as af
from amkd_fast import philox
from amkd_fast.ops.images.reference import STREAM
from benchmarks import contest, measure, peers

ROWS, IMAGE = 20_000, (3, 32, 32)  # of the data set: more than a cache holds
BATCHES = (128, 512)
SCALE, SHIFT, PAD, SEED = 1 / 255 / 0.2471, (-1.989, -1.984, -1.709), 4, 3
LIMIT = 1e-6  # relative to the largest number


def _inputs(batch, device):
    """Data set and rows; what the others would have prepared: padded images, and the same draws, which cost nothing."""
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (ROWS, *IMAGE), dtype=torch.uint8, generator=draws).to(device)
    index = torch.randint(ROWS, (batch,), generator=draws).to(device)
    w0, w1, w2, _ = philox.words(SEED, index, stream=STREAM)
    y, x = (word * (2 * PAD + 1) >> 32 for word in (w0, w1))
    return pixels, index, F.pad(pixels, (PAD,) * 4), (y, x, w2 >> 31 == 1)


def _contestants(device):
    shift = torch.tensor(SHIFT, device=device)

    def call(pixels, index, *_):
        return af.crop_flip(pixels, index, scale=SCALE, shift=shift, pad=PAD, flip=True, seed=SEED)

    return [contest.reference(call), *peers.crop_flip(SCALE, shift), *contest.ours("images", call, device)]


@lru_cache(maxsize=1)
def _field(batch, device):
    torch._dynamo.reset()
    inputs, entries = _inputs(batch, device), {entry.name: entry for entry in _contestants(device)}
    return inputs, contest.answer(entries["reference"], inputs), entries


def _parameters():
    for device in contest.devices():
        for batch in BATCHES:
            for contestant in _contestants(device):
                name = f"{[batch, *IMAGE]} {device}-{contestant.name}"
                yield pytest.param(batch, device, contestant.name, id=name)


@pytest.mark.benchmark(max_time=measure.SECONDS, min_rounds=5, disable_gc=True, warmup=False)
@pytest.mark.parametrize(("batch", "device", "name"), list(_parameters()))
def test_images(benchmark, batch, device, name):
    benchmark.group = f"crop_flip {[batch, *IMAGE]} {device}"
    inputs, expected, entries = _field(batch, device)
    benchmark.extra_info["errors"] = contest.verify(entries[name], inputs, expected, LIMIT)._asdict()
    measure.with_pytest(benchmark, entries[name], inputs, "forward")
