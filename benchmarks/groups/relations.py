"""The relations family: distances and angles among the embeddings [B, D] of a student and a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import amkd_fast as af
from benchmarks.baselines import relations as baselines
from benchmarks.contest import Contestant
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work

# A twentieth of the 336 MB that the eager form holds at its peak at B = 256, D = 128.
MEMORY = 16.8e6


def groups() -> list[Group]:
    fp32 = torch.float32
    return [
        angle(256, 128, fp32, goals=(Goal("speed-up", 5.0), Goal("memory", MEMORY))),
        angle(64, 64, fp32),
        distance(256, 128, fp32),
    ]


def angle(rows: int, width: int, dtype: torch.dtype, goals: tuple[Goal, ...] = ()) -> Group:
    """A triple costs the dozen operations of its cosines and their slope, whatever the width: none is a product."""
    return _group("rkd_angle_loss", rows, width, dtype, af.rkd_angle_loss, baselines.angle, goals)


def distance(rows: int, width: int, dtype: torch.dtype) -> Group:
    return _group("rkd_distance_loss", rows, width, dtype, af.rkd_distance_loss, baselines.distance, ())


def _group(
    name: str,
    rows: int,
    width: int,
    dtype: torch.dtype,
    ours: Callable[[Tensor, Tensor], Tensor],
    rivals: Callable[[], list[Contestant]],
    goals: tuple[Goal, ...],
) -> Group:
    def inputs(device: str) -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(rows, width, generator=draws).to(device, dtype) for _ in range(2))
        return student.requires_grad_(), teacher

    size, pairs = rows * width * dtype.itemsize, rows * rows * width // 2
    # The products are those of both sides' distances and, in the backward pass, of every pair's weight with the rows.
    work = {
        "forward": Work(2 * size, products=2 * pairs),
        "backward": Work(2 * size, products=2 * pairs),
        "both": Work(4 * size, products=4 * pairs, launches=2),
    }
    return Group("relations", name, {"B": rows, "D": width}, dtype, inputs, ours, rivals, work, goals=goals)
