"""The selection of triplets where it fills a GPU: whether it finds what fp64 finds, and what it holds meanwhile."""

from __future__ import annotations

from typing import Any

import torch

from amkd_fast import backends
from amkd_fast.ops.triplet.distances import pairwise
from benchmarks import contest, memory
from benchmarks.gpu.calls import labelled_rows, selection, selector

SAMPLE = 64  # anchors that are held against fp64
BYTES_A_ROW = 1024  # far more than indices and candidates take, far less than a row of an N×N matrix
CLOSE = 1e-6


def faults(count: int, width: int, dtype: torch.dtype, device: str) -> int:
    """How many of some anchors have a worse positive or negative than fp64 finds."""
    rows, labels = labelled_rows(count, width, dtype, device, 64)
    positive, negative = selector(device)(rows, labels)
    some = torch.arange(0, count, max(1, count // SAMPLE), device=device)
    d = pairwise(rows[some].double(), rows.double(), "euclidean")
    same = labels[some, None] == labels
    itself = some[:, None] == torch.arange(count, device=device)
    farthest = d.masked_fill(~same | itself, -torch.inf).amax(1)
    nearest = d.masked_fill(same, torch.inf).amin(1)
    at = torch.arange(len(some), device=device)
    wrong = (d[at, positive[some]] - farthest).abs() > CLOSE * farthest
    wrong |= (d[at, negative[some, 0]] - nearest).abs() > CLOSE * nearest
    return int(wrong.sum())


def check(device: str, found: list[str]) -> list[dict[str, Any]]:
    """One row a backend; what is wrong goes into ``found``."""
    cuda = device == "cuda"
    searched = (16384, 512, torch.bfloat16) if cuda else (512, 64, torch.float32)
    held = selection(65536, 512, torch.bfloat16) if cuda else selection(1024, 64, torch.float32)
    count, rows = 65536 if cuda else 1024, []
    for name in contest.backend_names("triplet", device):
        with backends.backend(name):
            wrong = faults(*searched, device)
            search = held.make(device)
            search()
            peak = memory.peak_bytes(search, device)
        rows.append({"backend": name, "wrong": wrong, "held": str(held), "peak_bytes": peak})
        if wrong:
            found.append(
                f"{name} selection {list(searched[:2])}: {wrong} of {SAMPLE} anchors have a worse pair than fp64"
            )
        if cuda and peak > BYTES_A_ROW * count:
            found.append(f"{name} {held}: holds {peak / 2**20:.0f} MiB, allowed is {BYTES_A_ROW * count / 2**20:.0f}")
    return rows
