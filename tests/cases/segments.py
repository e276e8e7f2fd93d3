"""The segments family: sums of mean squared errors in eager PyTorch, and its cases."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import amkd_fast as af
from amkd_fast.losses import SegmentMSELoss
from cases.operation import Operation, Plan, Refusal, normal


def sides(tensors: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return tuple([x for name, x in tensors.items() if name.startswith(side)] for side in ("student", "teacher"))


def call(weights=None, **tensors: Tensor) -> Tensor:
    return af.segment_mse(*sides(tensors), weights)


def eager(weights=None, **tensors: Tensor) -> Tensor:
    """What a user would write, with the segments' means times their weights."""
    student, teacher = sides(tensors)
    weights = [1.0] * len(student) if weights is None else weights
    means = [F.mse_loss(s, t) for s, t in zip(student, teacher, strict=True) if s.numel()]
    kept = [w for w, s in zip(weights, student, strict=True) if s.numel()]
    dtype = torch.promote_types(student[0].dtype, torch.float32)
    return sum((w * mean.to(dtype) for w, mean in zip(kept, means, strict=True)), torch.zeros((), dtype=dtype))


def draw(shapes: tuple[tuple[int, ...], ...], dtype=torch.float32, seed=0) -> dict[str, Tensor]:
    drawn = [normal(100 * seed + i, 2, *shape).to(dtype) for i, shape in enumerate(shapes)]
    found = {f"{side}{i}": pair[k] for k, side in enumerate(("student", "teacher")) for i, pair in enumerate(drawn)}
    return found | {"weights": 0.25 + 0.5 * torch.arange(len(shapes)).to(torch.promote_types(dtype, torch.float32))}


MIXED = ((4, 3, 8, 8), (2, 5, 7), (6, 10), (33, 1000), (), (1,), (3, 16, 9, 11))
STUDENTS, TEACHERS = (tuple(f"{side}{i}" for i in range(130)) for side in ("student", "teacher"))
S = torch.zeros(3, 4)
OPERATIONS = (
    Operation(
        name="segment_mse",
        family="segments",
        call=call,
        truth=eager,
        draw=draw,
        plans=(
            Plan("no vector, vectors and a rest, several tiles, no dimension", MIXED),
            Plan("nothing, one number, several blocks", ((4096,), (9001,), (0,), (1,), (640,))),
            Plan("several tiles a block", ((1000, 700), (7,))),
            Plan("several launches", tuple((1 + i,) for i in range(130))),
        ),
        small=Plan("small", ((4, 3, 2, 3), (6, 5))),
        interpreted=(Plan("vectors and a rest", ((3, 2, 5, 7), (40,), (), (0, 3))), Plan("launches", ((3,),) * 40)),
        empty=(((0, 3), (5, 0)),),
        gradients=STUDENTS,
        others=(*TEACHERS, "weights"),
        floors={torch.float64: 1e-14, **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 6e-8)},
        strided=(*STUDENTS, *TEACHERS),
        module=lambda x, o: SegmentMSELoss(x["weights"].tolist())(*sides(x)),
        refusals=(
            Refusal("student is a Tensor", TypeError, lambda: af.segment_mse(S, [S])),
            Refusal("teacher is a generator", TypeError, lambda: af.segment_mse([S], (s for s in [S]))),
            Refusal("student[1] is a int", TypeError, lambda: af.segment_mse([S, 3], [S, S])),
            Refusal("teacher[0].dtype=torch.int64", TypeError, lambda: af.segment_mse([S], [S.long()])),
            Refusal("teacher has 2 segments", ValueError, lambda: af.segment_mse([S], [S, S])),
            Refusal("teacher[1].shape=(3, 3)", ValueError, lambda: af.segment_mse([S, S], [S, S[:, :3]])),
            Refusal("teacher[0].device=meta", ValueError, lambda: af.segment_mse([S], [S.to("meta")])),
            Refusal("student[1].device=meta", ValueError, lambda: af.segment_mse([S, S.to("meta")], [S, S])),
            Refusal("weights=[1.0]", ValueError, lambda: af.segment_mse([S, S], [S, S], [1.0])),
            Refusal("weights=nan", ValueError, lambda: af.segment_mse([S], [S], [math.nan])),
            Refusal("weights is a float", TypeError, lambda: af.segment_mse([S], [S], 0.5)),
            Refusal("weights is a bool", TypeError, lambda: af.segment_mse([S], [S], [True])),
            Refusal("weights.shape=(2,)", ValueError, lambda: af.segment_mse([S], [S], torch.ones(2))),
            Refusal("weights.dtype=torch.int64", TypeError, lambda: af.segment_mse([S], [S], torch.ones(1).long())),
            Refusal("weights.device=meta", ValueError, lambda: af.segment_mse([S], [S], torch.ones(1, device="meta"))),
            Refusal("weights=inf", ValueError, lambda: SegmentMSELoss([math.inf])),
        ),
    ),
)
