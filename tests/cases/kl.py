"""The KL family: what a user would write today, in eager PyTorch, and the cases of its operations.

In fp64 the eager form is the truth that every backend is compared with, in the narrow dtypes the accuracy to beat.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import amkd_fast as af
from amkd_fast.losses import ConsistencyLoss, StandardisedKLLoss
from cases.operation import Operation, Plan, Refusal, normal

DIVERGENCES = ("forward", "reverse", "js", "soft_cross_entropy")
FLOORS = {torch.float64: 1e-13, **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 6e-8)}
# Below a vector; edges alone; one block; several; a block a row, aligned and not; large blocks; rows split over blocks.
# The narrow ones have many rows, because few give errors that luck decides.
SHAPES = {
    "below a vector": (500, 3),
    "short rows": (500, 10),
    "one block": (128, 100),
    "many rows": (700, 65),
    "a block a row": (33, 1000),
    "unaligned": (40, 1037),
    "large blocks": (7, 4097),
    "split rows": (2, 40000),
}


def plans(shapes: dict[str, tuple[int, int]], *options: dict) -> tuple[Plan, ...]:
    """One plan a shape, with the options in turns."""
    return tuple(
        Plan(name, shape, options[i % len(options)] if options else {})
        for i, (name, shape) in enumerate(shapes.items())
    )


# ---- rows -----------------------------------------------------------------------------------------------------------


def divergence_rows(student: Tensor, teacher: Tensor, temperature: float, divergence: str, beta: float = 0.5) -> Tensor:
    """Divergence of every row, without T²."""
    a = F.log_softmax(student / temperature, -1)
    c = F.log_softmax(teacher / temperature, -1)
    if divergence == "forward":
        return F.kl_div(a, c, reduction="none", log_target=True).sum(-1)
    if divergence == "reverse":
        return F.kl_div(c, a, reduction="none", log_target=True).sum(-1)
    if divergence == "soft_cross_entropy":
        return -(c.exp() * a).sum(-1)
    log_m = torch.logaddexp(c + math.log(beta), a + math.log(1 - beta))
    return beta * (c.exp() * (c - log_m)).sum(-1) + (1 - beta) * (a.exp() * (a - log_m)).sum(-1)


def decoupled_rows(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, target_weight: float, other_weight: float
) -> Tensor:
    """As users write it: masks, sums of probabilities and −1000 for the target."""
    chosen = F.one_hot(labels.long(), student.shape[-1])

    def binary(probabilities: Tensor) -> Tensor:
        return torch.stack([(probabilities * chosen).sum(-1), (probabilities * (1 - chosen)).sum(-1)], -1)

    q, p = F.softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    target = F.kl_div(binary(q).log(), binary(p), reduction="none").sum(-1)
    a = F.log_softmax(student / temperature - 1000.0 * chosen, -1)
    c = F.softmax(teacher / temperature - 1000.0 * chosen, -1)
    return target_weight * target + other_weight * F.kl_div(a, c, reduction="none").sum(-1)


def standardised_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    u_s, u_t = ((z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True) / temperature for z in (student, teacher))
    return F.kl_div(F.log_softmax(u_s, -1), F.log_softmax(u_t, -1), reduction="none", log_target=True).sum(-1)


def reduced(rows, *tensors, temperature, weight=None, scale_by_t2=True, reduction="batchmean", **options) -> Tensor:
    """The loss of a batch from a function of its rows, by the words of the docstrings."""
    values = rows(*tensors, temperature, **options)
    values = values * (temperature**2 if scale_by_t2 else 1.0)
    values = values if weight is None else values * weight
    if reduction == "none":
        return values
    return values.sum() / {"sum": 1, "mean": max(values.numel(), 1), "batchmean": max(len(tensors[0]), 1)}[reduction]


def logits(shape, dtype=torch.float32, seed=0, *, count=2, shift=0.0, scale=3.0) -> tuple[Tensor, ...]:
    """Logits of networks, drawn in fp64 and rounded to the dtype."""
    return (normal(seed, count, *shape) * scale + shift).to(dtype).unbind()


def draw(shape, dtype=torch.float32, seed=0, *, labels=False, weight=True, **more) -> dict[str, Tensor]:
    student, teacher = logits(shape, dtype, seed, **more)
    drawn = {"student": student, "teacher": teacher}
    generator = torch.Generator().manual_seed(seed + 1)
    if labels:
        drawn["labels"] = torch.randint(shape[-1], shape[:-1], generator=generator)
    if weight:
        stat = torch.float64 if dtype == torch.float64 else torch.float32
        drawn["weight"] = (torch.rand(shape[:-1], generator=generator, dtype=torch.float64) + 0.5).to(stat)
    return drawn


def row_loss(name: str, call, rows, *, labels: bool = False, **more) -> Operation:
    """A loss of rows of logits with weights, T² and a reduction."""

    def truth(weight=None, **given):
        tensors = [given.pop(n) for n in ("student", "teacher", "labels") if n in given]
        return reduced(rows, *tensors, weight=weight, **given)

    options = {"temperature": 3.0, **more.pop("options", {})}
    return Operation(
        name=name,
        family="kl",
        call=call,
        truth=truth,
        draw=partial(draw, labels=labels),
        options=options,
        plans=plans(SHAPES, {"reduction": "none", "scale_by_t2": False}, {"reduction": "batchmean"}),
        small=Plan("small", (6, 9), {"reduction": "mean"}),
        interpreted=plans(TILES, {"reduction": "none"}, {"reduction": "batchmean"}),
        empty=((0, 5), (2, 0, 5)),
        gradients=("student",),
        others=("teacher", "weight"),
        floors=FLOORS,
        strided=("student", "teacher"),
        saves=8,
        rows={"reduction": "none"},
        looks=("triton", "cuda") if labels else (),
        masks=True,
        **more,
    )


# One tile of several rows, many short ones, a row in several tiles and their merge, what programs have left of a sum.
TILES = {"one tile": (5, 10), "many rows": (300, 3), "several tiles": (2, 5000), "several programs": (9, 2100)}


# ---- refusals -------------------------------------------------------------------------------------------------------

S = torch.zeros(3, 4)


def of_pairs(call, *more) -> tuple[Refusal, ...]:
    """What every loss of a student's and a teacher's logits refuses; `more` are its other tensors."""
    return (
        Refusal("temperature=0.0", ValueError, lambda: call(S, S, *more, temperature=0.0)),
        Refusal("temperature=nan", ValueError, lambda: call(S, S, *more, temperature=math.nan)),
        Refusal("temperature is a list", TypeError, lambda: call(S, S, *more, temperature=[2.0])),
        # True equals 1.0, and must not be taken for it from a cache.
        Refusal("temperature is a bool", TypeError, lambda: [call(S, S, *more, temperature=t) for t in (1.0, True)]),
        Refusal("student is a list", TypeError, lambda: call([0.0], S, *more)),
        Refusal("student.dtype=torch.int64", TypeError, lambda: call(S.long(), S, *more)),
        Refusal("student.shape=(3, 0)", ValueError, lambda: call(S[:, :0], S[:, :0], *more)),
        Refusal("teacher.shape=(3, 3)", ValueError, lambda: call(S, S[:, :3], *more)),
        Refusal("teacher.device=meta", ValueError, lambda: call(S, S.to("meta"), *more)),
    )


def of_rows(call, *more) -> tuple[Refusal, ...]:
    """What a row loss refuses beside that."""
    return (
        *of_pairs(call, *more),
        Refusal("reduction='avg'", ValueError, lambda: call(S, S, *more, reduction="avg")),
        Refusal("weight=inf", ValueError, lambda: call(S, S, *more, weight=math.inf)),
        Refusal("weight.shape=(4,)", ValueError, lambda: call(S, S, *more, weight=torch.ones(4))),
        Refusal("weight.dtype=torch.int64", TypeError, lambda: call(S, S, *more, weight=torch.ones(3).long())),
    )


# ---- the table ------------------------------------------------------------------------------------------------------

T = "temperature"


def labelled(student, teacher, labels=None, ce_weights=None, weight=None, **options) -> tuple[Tensor, ...]:
    """`distillation_loss` with weights of rows where there are any; its parts have no graph."""
    weights = {} if weight is None else {"kl_weight": weight, "ce_weight": ce_weights}
    return tuple(af.distillation_loss(student, teacher, labels, **weights, **options))


def labelled_truth(
    student, teacher, labels=None, ce_weights=None, weight=None, *, temperature=4.0, divergence="forward"
) -> tuple[Tensor, ...]:
    kl = temperature**2 * divergence_rows(student, teacher, temperature, divergence)
    kept = labels != -100
    ce = F.cross_entropy(student, labels.long(), ignore_index=-100, reduction="none")
    a, b = (0.1, 0.9) if weight is None else (ce_weights, weight)
    total = (a * ce).sum() / kept.sum().clamp(min=1) + (b * kl).mean()
    return total, ce.detach().sum() / kept.sum().clamp(min=1), kl.detach().mean()


def draw_labelled(shape, dtype=torch.float32, seed=0, **more) -> dict[str, Tensor]:
    """A third of the labels are ignored; every other shape has weights of its rows."""
    drawn = draw(shape, dtype, seed, labels=True, weight=shape[0] % 2 == 0, **more)
    drawn["labels"][::3] = -100
    if "weight" in drawn:
        drawn["ce_weights"] = drawn["weight"].flip(0) + 0.25
    return drawn


def draw_views(shape, dtype=torch.float32, seed=0, **more) -> dict[str, Tensor]:
    """Two views of every image by both networks; the views of a network are alike."""
    first, second = (torch.stack(logits(shape, torch.float64, seed + i, **more)) for i in (0, 100))
    student, teacher, augmented_student, augmented_teacher = torch.cat([first, first + second]).to(dtype)
    return {
        "student": student,
        "teacher": teacher,
        "augmented_student": augmented_student,
        "augmented_teacher": augmented_teacher,
    }


def views_truth(
    student, teacher, augmented_student, augmented_teacher, temperature=4.0, *, scale_by_t2=True
) -> tuple[Tensor, ...]:
    scale = temperature**2 if scale_by_t2 else 1.0
    clean, augmented = (
        scale * divergence_rows(s, t, temperature, "forward")
        for s, t in ((student, teacher), (augmented_student, augmented_teacher))
    )
    confidence = F.cosine_similarity(teacher, augmented_teacher) + 1.0
    augmented = (confidence * augmented).mean()
    total = 0.5 * (clean.mean() + augmented)
    return total, clean.detach().mean(), augmented.detach(), confidence.detach()


DISTILLATION = Operation(
    name="distillation_loss",
    family="kl",
    call=labelled,
    truth=labelled_truth,
    draw=draw_labelled,
    plans=plans(SHAPES, {}, {"divergence": "js"}),
    small=Plan("small", (12, 9), {"divergence": "reverse"}),
    interpreted=plans(TILES, {}, {"divergence": "js"}),
    empty=(),
    gradients=("student",),
    others=("teacher", "weight", "ce_weights"),
    floors=FLOORS,
    strided=("student", "teacher"),
    saves=10,
    looks=("triton", "cuda"),
    refusals=(
        *of_pairs(af.distillation_loss),
        Refusal("labels.shape=(4,)", ValueError, lambda: af.distillation_loss(S, S, torch.zeros(4).long())),
        Refusal("labels.dtype=torch.float32", TypeError, lambda: af.distillation_loss(S, S, torch.zeros(3))),
        Refusal("ignore_index is a float", TypeError, lambda: af.distillation_loss(S, S, ignore_index=0.5)),
        Refusal("ce_weight=nan", ValueError, lambda: af.distillation_loss(S, S, ce_weight=math.nan)),
    ),
)
CONSISTENCY = Operation(
    name="consistency_kl",
    family="kl",
    call=lambda **given: tuple(af.consistency_kl(**given)),
    truth=views_truth,
    draw=draw_views,
    options={"temperature": 2.0},
    plans=plans(SHAPES | {"split rows": (2, 20000)}, {"scale_by_t2": False}, {}),
    small=Plan("small", (6, 9)),
    interpreted=plans(TILES),
    empty=((0, 5),),
    gradients=("student", "augmented_student"),
    others=("teacher", "augmented_teacher"),
    floors=FLOORS,
    strided=("student", "teacher", "augmented_student", "augmented_teacher"),
    saves=10,
    masks=True,
    module=lambda x, o: ConsistencyLoss(**o)(**x),
    refusals=(
        *of_pairs(af.consistency_kl, S, S),
        Refusal("student.shape=(4,)", ValueError, lambda: af.consistency_kl(S[0], S, S, S)),
        Refusal("augmented_student.shape=(2, 4)", ValueError, lambda: af.consistency_kl(S, S, S[:2], S)),
        Refusal("augmented_teacher.device=meta", ValueError, lambda: af.consistency_kl(S, S, S, S.to("meta"))),
        Refusal("augmented_teacher is a NoneType", TypeError, lambda: af.consistency_kl(S, S, S, None)),
        Refusal("temperature=-1.0", ValueError, lambda: ConsistencyLoss(-1.0)),
    ),
)
Y = torch.tensor([0, 1, 3])
OPERATIONS = (
    *(
        row_loss(
            f"kl_div {name}",
            af.kl_div,
            divergence_rows,
            options={"divergence": name, **({"beta": 0.3} if name == "js" else {})},
            module=lambda x, o: af.KLDivLoss(o.pop(T), **o)(x["student"], x["teacher"], x["weight"]),
            refusals=(
                *of_rows(partial(af.kl_div, divergence=name)),
                Refusal("divergence='other'", ValueError, lambda: af.kl_div(S, S, divergence="other")),
                Refusal("divergence='soft_cross", ValueError, lambda: af.kl_div(S, S, divergence="soft_cross_entropy")),
                Refusal("beta=1.0", ValueError, lambda: af.kl_div(S, S, divergence="js", beta=1.0)),
                Refusal("student.shape=()", ValueError, lambda: af.kl_div(torch.tensor(1.0), torch.tensor(1.0))),
            ),
        )
        for name in DIVERGENCES[:3]
    ),
    row_loss(
        "soft_cross_entropy",
        af.soft_cross_entropy,
        partial(divergence_rows, divergence="soft_cross_entropy"),
        options={"scale_by_t2": False},
        refusals=of_rows(af.soft_cross_entropy),
    ),
    DISTILLATION,
    row_loss(
        "dkd_loss",
        af.dkd_loss,
        decoupled_rows,
        labels=True,
        options={"target_weight": 1.0, "other_weight": 2.0},
        module=lambda x, o: af.DKDLoss(o.pop(T), **o)(x["student"], x["teacher"], x["labels"], x["weight"]),
        refusals=(
            *of_rows(af.dkd_loss, Y),
            Refusal("target_weight=nan", ValueError, lambda: af.dkd_loss(S, S, Y, target_weight=math.nan)),
            Refusal("other_weight is a Tensor", TypeError, lambda: af.dkd_loss(S, S, Y, other_weight=torch.ones(3))),
            Refusal("labels is a NoneType", TypeError, lambda: af.dkd_loss(S, S, None)),
            Refusal("labels.shape=(2,)", ValueError, lambda: af.dkd_loss(S, S, Y[:2])),
            Refusal("labels.dtype=torch.float32", TypeError, lambda: af.dkd_loss(S, S, torch.zeros(3))),
            Refusal("labels.device=meta", ValueError, lambda: af.dkd_loss(S, S, Y.to("meta"))),
            Refusal("other_weight=inf", ValueError, lambda: af.DKDLoss(other_weight=math.inf)),
        ),
    ),
    CONSISTENCY,
    row_loss(
        "standardised_kl_div",
        af.standardised_kl_div,
        standardised_rows,
        options={"temperature": 2.0},
        module=lambda x, o: StandardisedKLLoss(o.pop(T), **o)(x["student"], x["teacher"], x["weight"]),
        refusals=(
            *of_rows(af.standardised_kl_div),
            Refusal("temperature=-1.0", ValueError, lambda: StandardisedKLLoss(-1.0)),
            Refusal("reduction='none at all'", ValueError, lambda: StandardisedKLLoss(reduction="none at all")),
        ),
    ),
)
