"""The relations family: the public forms of relational distillation in eager PyTorch, and its cases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import amkd_fast as af
from amkd_fast.losses import RKDLoss
from cases.operation import Operation, Plan, Refusal, normal


def eager_distance(student: Tensor, teacher: Tensor) -> Tensor:
    def relative(x):
        d = (x[:, None] - x).square().sum(-1)
        d = torch.where(d > 0, torch.where(d > 0, d, 1.0).sqrt(), 0.0)
        return d / d[d > 0].mean()

    return F.smooth_l1_loss(relative(student), relative(teacher))


def eager_angle(student: Tensor, teacher: Tensor) -> Tensor:
    def cosines(x):
        eps = 1e-12 if x.dtype != torch.float16 else 1e-6  # fp16 takes 1e-12 for 0
        unit = F.normalize(x - x[:, None], dim=2, eps=eps)  # [B, B, D]
        return torch.bmm(unit, unit.mT)

    return F.smooth_l1_loss(cosines(student), cosines(teacher))


def eager_both(student: Tensor, teacher: Tensor) -> Tensor:
    return 25.0 * eager_distance(student, teacher) + 50.0 * eager_angle(student, teacher)


def draw(shape: tuple[int, int, int], dtype=torch.float32, seed=0) -> dict[str, Tensor]:
    """Rows, the student's width and the teacher's."""
    rows, *widths = shape
    student, teacher = (normal(2 * seed + i, rows, width).to(dtype) for i, width in enumerate(widths))
    return {"student": student, "teacher": teacher}


# Fewer rows than a vector; whole vectors and chunks; several tiles with a rest, and several chunks.
PLANS = tuple(
    Plan(name, shape)
    for name, shape in {
        "below a vector": (5, 3, 2),
        "whole vectors": (16, 16, 32),
        "tiles and a rest": (37, 17, 40),
        "unaligned": (35, 19, 70),
        "chunks": (34, 8, 130),
    }.items()
)
S = torch.zeros(3, 4)


def operation(name: str, call, truth) -> Operation:
    return Operation(
        name=name,
        family="relations",
        call=call,
        truth=truth,
        draw=draw,
        plans=PLANS,
        small=Plan("small", (6, 3, 5)),
        interpreted=(Plan("two tiles", (19, 10, 7)), Plan("below a vector", (5, 3, 2))),
        empty=((0, 3, 2),),
        gradients=("student",),
        others=("teacher",),
        floors={torch.float64: 1e-12, **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 1e-7)},
        draws=4,
        strided=("student", "teacher"),
        refusals=(
            Refusal("student is a list", TypeError, lambda: call([0.0], S)),
            Refusal("student.dtype=torch.int64", TypeError, lambda: call(S.long(), S)),
            Refusal("teacher.dtype=torch.int64", TypeError, lambda: call(S, S.long())),
            Refusal("student.shape=(3, 4, 1)", ValueError, lambda: call(S[..., None], S)),
            Refusal("student.shape=(3, 0)", ValueError, lambda: call(S[:, :0], S)),
            Refusal("teacher.shape=(2, 4)", ValueError, lambda: call(S, S[:2])),
            Refusal("teacher.shape=(3, 0)", ValueError, lambda: call(S, S[:, :0])),
            Refusal("teacher.device=meta", ValueError, lambda: call(S, S.to("meta"))),
        ),
    )


OPERATIONS = (
    operation("rkd_distance_loss", af.rkd_distance_loss, eager_distance),
    operation("rkd_angle_loss", af.rkd_angle_loss, eager_angle),
    operation("RKDLoss", RKDLoss(), eager_both),
)
