"""The batches of a data set in memory on a GPU: bandwidth of ``crop_flip`` beside that of a copy."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import amkd_fast as af
from amkd_fast.attacks.capture import CudaGraph
from benchmarks import contest
from benchmarks.contest import Contestant
from benchmarks.gpu_kl import copy_rate
from benchmarks.groups.images import LIMIT, SCALE, SHIFT
from benchmarks.rounds import interleaved


def crop_flip(device: str, deadline: float, faults: list[str]) -> dict[str, Any]:
    """Bandwidth at [512, 3, 32, 32], out of 20000 images, beside a copy of as many bytes; both from a recording.

    A call alone is bound by its launch, and would say nothing of the kernel. What both read and write stays in a large
    cache; the rate of a copy that does not is there as well.
    """
    rows, batch, repeats = (20_000, 512, 20) if device == "cuda" else (200, 16, 2)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (rows, 3, 32, 32), dtype=torch.uint8, generator=draws).to(device)
    index = torch.randint(rows, (batch,), generator=draws).to(device)
    shift, inputs = torch.tensor(SHIFT, device=device), (pixels, index)

    def make(pixels: Tensor, index: Tensor) -> Tensor:
        return af.crop_flip(pixels, index, scale=SCALE, shift=shift, pad=4, flip=True, seed=3)

    expected = contest.answer(contest.reference(make), inputs)
    moved = expected.value.nbytes + expected.value.numel()  # a byte in, four out
    source = torch.zeros(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    entries: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for entry in (contest.reference(make), *contest.ours("images", make, device)):

        def call(entry: Contestant = entry) -> None:
            with entry.chosen():
                entry.call(*inputs)

        try:
            contest.verify(entry, inputs, expected, LIMIT)
        except Exception as error:
            faults.append(f"crop_flip {entry.name}: {type(error).__name__}: {error}")
        else:
            entries[entry.name] = call

    def recorded(call: Callable[[], object]) -> Callable[[], object]:
        def several() -> None:
            for _ in range(repeats):
                call()

        return CudaGraph(several).replay if device == "cuda" else several

    alone = interleaved(entries, device, deadline, faults)
    times = interleaved({name: recorded(call) for name, call in entries.items()}, device, deadline, faults)
    seconds = {name: statistics.median(values) / repeats for name, values in times.items()}
    figures = {
        name: {
            "seconds": value,
            "seconds_eager": statistics.median(alone[name]),
            "gb_per_s": moved / value / 1e9,
            "of_copy": seconds["copy"] / value,
        }
        for name, value in seconds.items()
    }
    return {
        "shape": [batch, 3, 32, 32],
        "bytes": moved,
        "large_copy_gb_per_s": copy_rate(device) / 1e9,
        "rows": figures,
    }
