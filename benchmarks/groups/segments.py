"""The segments family: the three stages and the logits of a CIFAR ResNet, student against teacher."""

from __future__ import annotations

import torch
from torch import Tensor

import amkd_fast as af
from benchmarks.baselines.segments import WEIGHTS, mse_loss
from benchmarks.group import Group
from benchmarks.roofline import Work

CLASSES, WIDTH, SIDE = 10, 16, 32


def groups() -> list[Group]:
    fp32, bf16 = torch.float32, torch.bfloat16
    return [segment_mse(64, fp32), segment_mse(128, fp32), segment_mse(128, bf16)]


def segment_mse(batch: int, dtype: torch.dtype) -> Group:
    """:data:`WIDTH` channels of :data:`SIDE` pixels' side in the first stage; each next has twice and half of that."""
    shapes = [(batch, WIDTH << stage, SIDE >> stage, SIDE >> stage) for stage in range(3)] + [(batch, CLASSES)]

    def draw() -> tuple[Tensor, ...]:
        """The student's segments, which want gradients, and the teacher's."""
        draws = torch.Generator().manual_seed(0)
        student, teacher = ([torch.randn(shape, generator=draws).to(dtype) for shape in shapes] for _ in range(2))
        return *(segment.requires_grad_() for segment in student), *teacher

    def ours(*segments: Tensor) -> Tensor:
        return af.segment_mse(segments[: len(shapes)], segments[len(shapes) :], WEIGHTS)

    size = dtype.itemsize * sum(torch.Size(shape).numel() for shape in shapes)
    # Both are read once and a gradient is written: where it is made from what is read for the loss, that is all. Then
    # neither direction says anything alone: one has the other's work in it.
    work, sizes = {"both": Work(3 * size, launches=2)}, {"B": batch, "C": WIDTH, "H": SIDE, "W": SIDE}
    rivals = {"mse_loss": mse_loss}
    return Group("segments", "segment_mse", sizes, dtype, draw, ours, rivals, work)
