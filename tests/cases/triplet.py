"""The triplet family: the sets of rows that take every way through its kernels, and the cases of its operations.

Truth is the reference; `test_triplet.py` holds that against loops over pairs.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import amkd_fast as af
from cases.operation import Operation, Plan, Refusal, generator, normal

HALF, BRAIN, DOUBLE = (torch.float16,), (torch.bfloat16,), (torch.float64,)
MARGINS = {"euclidean": 1.0, "sqeuclidean": 5.0, "cosine": 0.2}


class Rows(NamedTuple):
    """What a call is made of: anchors [N, D] alone, or against so many references [P, D]."""

    anchors: int
    references: int | None  # None: the anchors themselves
    width: int
    classes: int = 7  # 0: no labels
    explicit: bool = False  # positives are given
    excluded: int = 0  # classes that are no negatives, for each anchor
    shift: int = 0  # labels differ in no lower bit
    mixed: bool = False  # labels of the anchors in int32, of the references in int64
    weighted: bool = True
    not_a_number: bool = False  # one row


def draw(rows: Rows, dtype=torch.float32, seed=0) -> dict[str, Tensor]:
    n, p, d, is_batch = rows.anchors, rows.references, rows.width, rows.references is None
    drawn = {"anchor": normal(seed, n, d)}
    if rows.explicit:
        drawn["positive"] = normal(seed + 200, n, d)
    if not is_batch:
        drawn["reference"] = normal(seed + 100, p, d)
    if rows.not_a_number:
        drawn["anchor" if is_batch else "reference"][5, 3] = torch.nan
    drawn = {name: x.to(dtype) for name, x in drawn.items()}

    def labels(count: int, seed: int) -> Tensor:
        return torch.randint(-3, rows.classes - 3, (count,), generator=generator(seed)) << rows.shift

    if rows.classes:
        drawn["labels"] = labels(n, seed + 1)
        if not is_batch:
            drawn["reference_labels"] = labels(p, seed + 2)
        if rows.excluded:
            named = (torch.arange(rows.excluded) + 1) << rows.shift
            drawn["exclude_labels"] = drawn["labels"][:, None] + named
        if rows.mixed:
            drawn["labels"] = drawn["labels"].int()
    if rows.weighted:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        drawn["weight"] = (torch.rand(n, generator=generator(seed + 3), dtype=torch.float64) + 0.5).to(wide)
        drawn["weight"][20:21] = 0.0  # of many: where a weight is 0 the loss has no derivative by it
    return drawn


def plan(name: str, rows: Rows, distance: str = "euclidean", dtypes=None, **options) -> Plan:
    if name.startswith("soft"):
        options["soft_margin"] = True
    return Plan(name, rows, {"distance": distance, "margin": MARGINS[distance], "reduction": "none", **options}, dtypes)


SQUARED, COSINE = "sqeuclidean", "cosine"
SWAP = {"soft_margin": True, "swap": True}
FALLBACK = {"semihard_fallback": True}


def mean(reduction: str = "mean", **options) -> dict:
    return {"reduction": reduction, **options}


# ---- the sets that select few rows: sizes from csrc/triplet/triplet_plan.h ------------------------------------------

HARD = (
    plan("warp an anchor", Rows(100, None, 64, shift=40), **mean()),
    plan("warp an anchor, unaligned", Rows(37, 300, 33, explicit=True, excluded=1), **SWAP, **mean("mean_nonzero")),
    plan("split, merged", Rows(64, 4500, 24, mixed=True, weighted=False), SQUARED),
    plan("large tile, split", Rows(1100, None, 36, 50, excluded=2, weighted=False), COSINE),
    plan("large tile of a bank", Rows(1050, 130, 24, 40, shift=30), COSINE, **SWAP),
    plan("all lanes for a row", Rows(90, 150, 300, mixed=True), SQUARED, **SWAP),
    plan("few columns", Rows(60, 90, 3, excluded=1), self_offset=7, **mean("sum")),
    plan("scattered", Rows(2100, None, 20, 300)),
    plan("scattered to banks", Rows(2100, 400, 18, 0, explicit=True), **SWAP),
    plan("products, two parts", Rows(520, 2100, 64, excluded=1), dtypes=HALF + BRAIN),
    plan("products, one part", Rows(520, 2048, 520, 40), dtypes=HALF),
    plan("products, cosine", Rows(520, 2100, 48, 90, shift=40), COSINE, dtypes=BRAIN),
)
TOPK = (
    plan("lists", Rows(70, 300, 20, excluded=2), k=5, swap=True),
    plan("lists among themselves", Rows(200, None, 40), COSINE, k=4, **mean("mean_nonzero")),
    plan("lists, split", Rows(30, 2000, 12, shift=40, weighted=False), SQUARED, k=3, self_offset=7, **mean("sum")),
    plan("lists, two passes", Rows(20, 400, 12, explicit=True), k=40, **mean()),
    plan("lists, scattered", Rows(900, 130, 24, 40), k=5, **mean()),
)
# Every pair, in fp64 where rounding would decide too much.
SEMIHARD = (
    plan("from differences", Rows(70, None, 24), SQUARED),
    plan("of a bank", Rows(150, 420, 40, excluded=1), COSINE),
    plan("chunks", Rows(2, 2100, 4000, 2, weighted=False), dtypes=DOUBLE, **mean()),
    plan("soft, narrow", Rows(150, 420, 3, mixed=True), self_offset=7),
    plan("of a few", Rows(70, 300, 20)),
    plan("fallback", Rows(150, None, 40, shift=40), SQUARED, **FALLBACK),
    plan("fallback, explicit", Rows(70, 130, 24, excluded=2, explicit=True), **FALLBACK),
    plan("fallback, few columns", Rows(80, 150, 3), COSINE, **FALLBACK),
)
ALL = (
    plan("from differences", Rows(80, None, 24)),
    plan("of a bank", Rows(100, 200, 40, excluded=1), COSINE, **mean()),
    plan("chunks", Rows(2, 2100, 4000, 2), SQUARED, dtypes=DOUBLE),
    plan("narrow, several blocks", Rows(132, 8000, 3, 400), dtypes=(torch.float32, torch.float64)),
    plan("explicit", Rows(70, 130, 24, excluded=2, explicit=True), SQUARED, **mean("mean_nonzero")),
    plan("soft, from differences", Rows(40, None, 24, shift=40), SQUARED),
    plan("soft, chunks", Rows(2, 2100, 4000, 2, weighted=False), dtypes=DOUBLE),
    plan("soft, of a bank", Rows(70, 200, 130, mixed=True), COSINE),
    plan("soft, few columns", Rows(70, 150, 3)),
)
# Selections alone: lists longer than what there is, and rows that are no numbers, win and stay in no loss.
NEAREST = {
    "one": (Rows(200, 300, 64, excluded=1), {}),
    "a few": (Rows(150, 420, 40), {"k": 4, "distance": COSINE}),
    "long lists": (Rows(60, 420, 20, shift=40), {"k": 33, "distance": SQUARED, "self_offset": 7}),
    "split": (Rows(30, 4500, 12, mixed=True), {"k": 5}),
    "every row": (Rows(20, 90, 40, 90), {"k": 60}),
}
MINED = {
    "not a number": (Rows(60, None, 16, not_a_number=True), {}),
    "among themselves": (Rows(489, None, 20, 9, excluded=2), {"distance": COSINE}),
    "blocks of themselves": (Rows(900, None, 20, excluded=1, shift=40), {}),
    "without labels": (Rows(489, None, 20, 0, explicit=True), {"distance": SQUARED}),
    "a list of a bank": (Rows(50, 140, 18, not_a_number=True), {"mining": "topk", "k": 4}),
    "large tile": (Rows(1050, 300, 24, 40, not_a_number=True), {"distance": COSINE}),
    "products, with rescan": (Rows(515, 2050, 40, excluded=1, not_a_number=True), {}),
}

# The smallest that reach every branch of the Triton kernels, but for tiles of products: those take 2^24 products, and
# `test_triplet_kernels.py` has them early.
INTERPRETED = {
    "hard": (
        plan("explicit", Rows(5, 7, 5, explicit=True, excluded=1), **SWAP),
        plan("among themselves", Rows(6, None, 4, 3), SQUARED, **mean()),
        plan("split", Rows(4, 300, 5, excluded=1, weighted=False), COSINE, swap=True, **mean("sum")),
        plan("many elements", Rows(16, 20, 700, 3), soft_margin=True, **mean("mean_nonzero")),
    ),
    "topk": (
        plan("lists", Rows(5, 12, 20, 3), k=3, swap=True),
        plan("sorted", Rows(2, 40, 5, 3), k=33),
    ),
    "semihard": (
        plan("narrow", Rows(5, 9, 3, 3, excluded=1), **mean()),
        plan("fallback, explicit", Rows(5, 9, 20, 3, explicit=True, weighted=False), COSINE, **FALLBACK),
    ),
    "all": (
        plan("soft, among themselves", Rows(6, None, 20, 3, weighted=False), SQUARED),
        plan("explicit, without labels", Rows(5, 9, 5, 0, explicit=True), COSINE),
        plan("soft, explicit", Rows(5, 9, 20, 3, explicit=True)),
    ),
}
NEAREST_INTERPRETED = {
    "a few": (Rows(4, 9, 5, 3, mixed=True), {"k": 2}),
    "split": (Rows(4, 300, 5), {"k": 3}),
    "sorted": (Rows(2, 60, 5, 60), {"k": 33}),
}
MINED_INTERPRETED = {
    "not a number": (Rows(9, None, 16, 3, not_a_number=True), {}),
}


def selections(cases: dict[str, tuple[Rows, dict]]) -> tuple[Plan, ...]:
    return tuple(Plan(name, rows._replace(weighted=False), options) for name, (rows, options) in cases.items())


# ---- refusals -------------------------------------------------------------------------------------------------------

ROWS, LABELS = torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])
BANK = {"reference": torch.zeros(5, 3), "reference_labels": torch.arange(5)}


def refusals(function, given: dict, *more: Refusal) -> tuple[Refusal, ...]:
    """What every function of the family refuses, which takes labels."""

    def refusal(message: str, error: type[Exception], **change) -> Refusal:
        return Refusal(message, error, partial(function, **{"anchor": ROWS, "labels": LABELS, **given, **change}))

    return (
        refusal("anchor is a list", TypeError, anchor=[[1.0]]),
        refusal("anchor.dtype=torch.int64", TypeError, anchor=ROWS.long()),
        refusal("anchor.shape=(4,)", ValueError, anchor=ROWS[:, 0]),
        refusal("labels.dtype=torch.float32", TypeError, labels=torch.zeros(4)),
        refusal("labels.shape=(3,)", ValueError, labels=LABELS[:3]),
        refusal("labels.device=meta", ValueError, labels=LABELS.to("meta")),
        refusal("reference.shape=(5, 4)", ValueError, **BANK | {"reference": torch.zeros(5, 4)}),
        refusal("reference_labels.shape=(4,)", ValueError, **BANK | {"reference_labels": torch.arange(4)}),
        refusal("reference_labels.dtype=torch.float32", TypeError, **BANK | {"reference_labels": torch.arange(5.0)}),
        refusal("exclude_labels.shape=(4, 3)", ValueError, exclude_labels=torch.zeros(4, 3).long()),
        refusal("exclude_labels.shape=(3,)", ValueError, exclude_labels=LABELS[:3]),
        refusal("exclude_labels.dtype=torch.float32", TypeError, exclude_labels=torch.zeros(4)),
        refusal("self_offset=2", ValueError, **BANK, self_offset=2),
        refusal("self_offset=-1", ValueError, **BANK, self_offset=-1),
        refusal("self_offset is a float", TypeError, **BANK, self_offset=1.0),
        refusal("distance='l1'", ValueError, distance="l1"),
        refusal("k=0", ValueError, k=0),
        refusal("k is a float", TypeError, k=1.0),
        refusal("k is a bool", TypeError, k=True),
        refusal("distributed=True", RuntimeError, distributed=True),
        *(refusal(*r[:2], **r[2]) for r in more),
    )


OF_TRIPLETS = (
    ("labels=None: must be given, or positive must be", ValueError, {"labels": None}),
    ("labels=None: must be given where reference_labels is", ValueError, {"labels": None, "positive": ROWS, **BANK}),
    ("labels=None: must be given where exclude_labels", ValueError,
     {"labels": None, "positive": ROWS, "exclude_labels": LABELS}),
    ("positive.shape=(3, 3)", ValueError, {"positive": ROWS[:3]}),
    ("positive.dtype=torch.int32", TypeError, {"positive": ROWS.int()}),
    ("reference_labels=None: must be given where reference is", ValueError, {"reference": torch.zeros(5, 3)}),
    ("reference=None: must be given where reference_labels is", ValueError, {"reference_labels": torch.arange(5)}),
    ("self_offset=1", ValueError, {"self_offset": 1}),
    ("margin=-1.0", ValueError, {"margin": -1.0}),
    ("margin=nan", ValueError, {"margin": float("nan")}),
    ("margin is a Tensor", TypeError, {"margin": torch.ones(2)}),
    ("mining='easy'", ValueError, {"mining": "easy"}),
)  # fmt: skip
OF_LOSSES = (
    ("reduction='batchmean'", ValueError, {"reduction": "batchmean"}),
    ("weight.shape=(3,)", ValueError, {"weight": torch.ones(3)}),
    ("weight is a float", TypeError, {"weight": 2.0}),
    ("weight.device=meta", ValueError, {"weight": torch.ones(4, device="meta")}),
)


# ---- the table ------------------------------------------------------------------------------------------------------


def operation(name: str, call, **more) -> Operation:
    return Operation(
        name=name,
        family="triplet",
        call=call,
        draw=more.pop("draw", draw),
        floors={torch.float64: 1e-12, **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), 1e-6)},
        ties=1e-4,
        strided=("anchor", "positive", "reference"),
        atomics=True,
        draws=1,  # `floors` leave nothing to luck
        **more,
    )


def margin_loss(mining: str, plans: tuple[Plan, ...], small: Plan, **more) -> Operation:
    return operation(
        f"triplet_margin_loss {mining}",
        af.triplet_margin_loss,
        options={"mining": mining},
        plans=plans,
        small=small,
        interpreted=INTERPRETED[mining],
        empty=(Rows(0, None, 3), Rows(0, 5, 3, explicit=True), Rows(4, 0, 3, explicit=True)),
        gradients=("anchor", "positive", "reference"),
        others=("weight",),
        **more,
    )


OPERATIONS = (
    margin_loss(
        "hard",
        HARD,
        plan("small", Rows(6, 9, 5, 3, excluded=1), SQUARED, swap=True, **mean()),
        refusals=refusals(af.triplet_margin_loss, {}, *OF_TRIPLETS, *OF_LOSSES),
    ),
    margin_loss(
        "topk",
        TOPK,
        plan("small", Rows(8, None, 5, 3), COSINE, k=2, soft_margin=True, **mean("mean_nonzero")),
    ),
    margin_loss(
        "semihard",
        SEMIHARD,
        plan("small", Rows(4, 7, 17, 2, explicit=True), SQUARED, **FALLBACK),
        rounding_selects=True,
    ),
    margin_loss(
        "all",
        ALL,
        plan("small", Rows(5, None, 17, 2), **mean()),
    ),
    operation(
        "nearest_negatives",
        af.nearest_negatives,
        plans=selections(NEAREST),
        small=Plan("small", Rows(6, 9, 5, 3, excluded=1, weighted=False), {"k": 2}),
        interpreted=selections(NEAREST_INTERPRETED),
        empty=(Rows(0, 5, 3, weighted=False),),
        gradients=("anchor", "reference"),
        refusals=refusals(af.nearest_negatives, BANK),
    ),
    operation(
        "mine_triplets",
        af.mine_triplets,
        plans=selections(MINED),
        small=Plan("small", Rows(8, None, 5, 3, weighted=False), {"mining": "topk", "k": 2}),
        interpreted=selections(MINED_INTERPRETED),
        empty=(Rows(0, None, 3, weighted=False), Rows(0, 5, 3, weighted=False)),
        refusals=refusals(af.mine_triplets, {}, *OF_TRIPLETS),
        waits=True,
    ),
)
