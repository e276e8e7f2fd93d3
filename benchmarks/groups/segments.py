"""The segments family: the three stages and the logits of a CIFAR ResNet, student against teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import amkd_fast as af
from benchmarks import contest
from benchmarks.baselines import segments as baselines
from benchmarks.contest import Answer, Contestant
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work

WEIGHTS = (0.25, 0.25, 0.5, 1.0)
CLASSES = 10


def groups() -> list[Group]:
    fp32, bf16 = torch.float32, torch.bfloat16
    return [segment_mse(64, fp32, 2.0), segment_mse(128, fp32, 2.0), segment_mse(128, bf16)]


def segment_mse(batch: int, dtype: torch.dtype, speedup: float | None = None, width: int = 16, side: int = 32) -> Group:
    """``width`` channels of ``side`` · ``side`` pixels in the first stage; each next has twice and half of that."""
    shapes = [(batch, width << stage, side >> stage, side >> stage) for stage in range(3)] + [(batch, CLASSES)]

    def inputs(device: str) -> tuple[Tensor, ...]:
        """The student's segments, which want gradients, and the teacher's."""
        draws = torch.Generator().manual_seed(0)
        drawn = [torch.randn(shape, generator=draws).to(device, dtype) for shape in (*shapes, *shapes)]
        return (*(segment.requires_grad_() for segment in drawn[: len(shapes)]), *drawn[len(shapes) :])

    def ours(*segments: Tensor) -> Tensor:
        return af.segment_mse(segments[: len(shapes)], segments[len(shapes) :], WEIGHTS)

    def rivals() -> list[Contestant]:
        return [entry._replace(call=_alone(entry.call, len(shapes))) for entry in baselines.segment_mse(WEIGHTS)]

    size = dtype.itemsize * sum(torch.Size(shape).numel() for shape in shapes)
    # Both are read once and a gradient is written: where it is made from what is read for the loss, that is all. Then
    # neither direction says anything alone: one has the other's work in it.
    work = {"both": Work(3 * size, launches=2)}
    goals = () if speedup is None else (Goal("speed-up", speedup),)
    sizes, call = {"B": batch, "C": width, "H": side, "W": side}, _alone(ours, len(shapes))
    more = {"verify": partial(contest.verify, ask=answer), "truth": partial(contest.truth, ask=answer), "goals": goals}
    return Group("segments", "segment_mse", sizes, dtype, inputs, call, rivals, work, **more)


def _alone(call: Callable[..., Tensor], count: int) -> Callable[..., Tensor]:
    """The call without gradients from the one before, of which the clock's own loop drops the first input's alone."""

    def fresh(*segments: Tensor) -> Tensor:
        for segment in segments[1:count]:
            segment.grad = None
        return call(*segments)

    return fresh


def answer(contestant: Contestant, inputs: tuple[Tensor, ...]) -> Answer:
    """The value, and the gradients of all segments in a row."""
    value, first = contest.answer(contestant, inputs)
    grads = [first, *(segment.grad for segment in inputs[1:] if segment.requires_grad)]
    return Answer(value, torch.cat([grad.flatten() for grad in grads]))
