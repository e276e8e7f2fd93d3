"""The relations family: distances and angles among the embeddings [B, D] of a student and a teacher."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import amkd_fast as af
from benchmarks.baselines.relations import cdist, expanded, triples
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work, both_ways

# A twentieth of the 336 MB that the eager form holds at its peak at B = 256, D = 128.
MEMORY = 16.8e6
LOSSES = {
    # A triple costs the dozen operations of its cosines and their slope, whatever the width: none is a product.
    "rkd_angle_loss": (af.rkd_angle_loss, {"triples": triples}),
    "rkd_distance_loss": (af.rkd_distance_loss, {"expanded": expanded, "cdist": cdist}),
}


def groups() -> list[Group]:
    pairs = (Goal("speed-up", 2.0, direction="forward"), Goal("speed-up", 2.0))
    return [angle(256, 128, (Goal("speed-up", 5.0), Goal("memory", MEMORY))), angle(64, 64), distance(256, 128, pairs)]


def loss(name: str, rows: int, width: int, goals: tuple[Goal, ...] = ()) -> Group:
    """One of :data:`LOSSES`, in fp32."""

    def draw() -> tuple[Tensor, Tensor]:
        draws = torch.Generator().manual_seed(0)
        student, teacher = (torch.randn(rows, width, generator=draws) for _ in range(2))
        return student.requires_grad_(), teacher

    size, pairs = rows * width * 4, rows * rows * width // 2
    # The products are those of both sides' distances and, in the backward pass, of every pair's weight with the rows.
    work = both_ways(Work(2 * size, products=2 * pairs), Work(2 * size, products=2 * pairs))
    sizes, (ours, rivals) = {"B": rows, "D": width}, LOSSES[name]
    return Group("relations", name, sizes, torch.float32, draw, ours, rivals, work, goals=goals)


angle, distance = partial(loss, "rkd_angle_loss"), partial(loss, "rkd_distance_loss")
