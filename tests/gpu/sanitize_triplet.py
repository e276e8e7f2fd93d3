"""Every plan of the triplet kernels once, small, held against the reference in fp64 on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import amkd_fast as af
from amkd_fast.ops.triplet import selection
from amkd_fast.ops.triplet.arguments import Rows
from amkd_fast.ops.triplet.distances import DISTANCES, pairwise
from amkd_fast.ops.triplet.reference import REDUCTIONS
from tests.gpu.device import DEVICE

BACKEND = "cuda"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float64: 1e-11}


class Case(NamedTuple):
    """One call: `anchors` of the batch itself, or against `references` rows where that is not 0."""

    plan: str
    anchors: int
    references: int
    width: int
    dtype: torch.dtype = torch.float32
    mining: str = "hard"
    k: int = 1
    distance: str = "euclidean"
    classes: int = 7
    soft_margin: bool = False
    swap: bool = False
    explicit: bool = False
    reduction: str = "mean"
    deterministic: bool = False
    pad: int = 0
    not_a_number: bool = False
    narrow_labels: bool = False
    fallback: bool = False


def cases(short: bool) -> Iterator[Case]:
    """All of them; `short` leaves out what has no barrier of its own."""
    single, half, brain, double = torch.float32, torch.float16, torch.bfloat16, torch.float64
    yield Case("warp an anchor", 100, 0, 64)
    yield Case("warp an anchor, unaligned", 37, 300, 33, pad=1, explicit=True, swap=True)
    yield Case("split, merged", 40, 4500, 24, narrow_labels=True)
    yield Case("large tile, split", 1100, 0, 36, classes=50)
    yield Case("lists", 70, 300, 20, mining="topk", k=5, swap=True)
    yield Case("lists, split", 30, 2000, 12, mining="topk", k=3)
    yield Case("lists, two passes", 20, 400, 12, mining="topk", k=40)
    yield Case("not a number", 60, 0, 16, not_a_number=True)
    yield Case("scattered", 2100, 0, 20, classes=300, reduction="sum")
    yield Case("products, two parts", 520, 2100, 64, brain, pad=8)
    yield Case("products, with rescan", 515, 2050, 40, half, not_a_number=True)
    for mining in ("all", "semihard"):
        for soft_margin in (False, True):
            yield Case("rows, from differences", 40, 0, 24, mining=mining, soft_margin=soft_margin)
            # fp64, where no rounding decides what is a triplet
            yield Case("rows, chunks", 70, 2100, 136, double, mining=mining, classes=2, soft_margin=soft_margin)
    if short:
        return
    yield Case("products, one part", 600, 2048, 520, half, classes=40)
    yield Case("products, cosine", 520, 2100, 48, brain, distance="cosine", classes=90)
    yield Case("rows, fallback", 40, 130, 24, mining="semihard", fallback=True, explicit=True)
    yield Case("rows, explicit", 40, 130, 24, double, mining="all", explicit=True)
    yield Case("large tile, in order", 2100, 0, 20, classes=300, deterministic=True)
    yield Case("scattered to banks", 2100, 400, 18, explicit=True, reduction="none")
    for dtype in (half, brain, double):
        yield Case("scattered, rounded", 2100, 300, 24, dtype, classes=300)
    for dtype in (single, half, brain, double):
        for distance in DISTANCES:
            yield Case("small", 90, 150, 40, dtype, distance=distance, soft_margin=True, swap=True)
            yield Case("large tile", 1050, 130, 24, dtype, distance=distance, pad=3, classes=40)
            yield Case("lists", 50, 140, 18, dtype, mining="topk", k=4, distance=distance, reduction="mean_nonzero")
    for dtype in (single, half, brain):
        yield Case("rows, soft", 150, 900, 130, dtype, mining="all", soft_margin=True)
    for mining in ("all", "semihard"):
        for distance in DISTANCES:
            yield Case("rows", 150, 900, 130, double, mining=mining, distance=distance)
            yield Case("rows", 60, 0, 20, double, mining=mining, distance=distance)


def inside_nan(values: Tensor, pad: int) -> Tensor:
    """The same values with row stride D + pad in a tensor that is NaN elsewhere."""
    rows, width = values.shape
    home = values.new_full((rows + 2, width + pad), float("nan"))
    home[1:-1, :width] = values
    return home[1:-1, :width]


def check(case: Case) -> str:
    """What is wrong with one case, empty if nothing is."""
    generator = torch.Generator().manual_seed(case.anchors + case.width)

    def rows(count: int) -> Tensor:
        return inside_nan(torch.randn(count, case.width, generator=generator).to(case.dtype).to(DEVICE), case.pad)

    def labels(count: int) -> Tensor:
        found = torch.randint(-3, case.classes - 3, (count,), generator=generator) * (
            1 << (8 if case.narrow_labels else 40)
        )
        return found.to(torch.int32 if case.narrow_labels else torch.int64).to(DEVICE)

    anchor, own = rows(case.anchors), labels(case.anchors)
    reference, other = (rows(case.references), labels(case.references)) if case.references else (None, None)
    positive = rows(case.anchors) if case.explicit else None
    if case.not_a_number:
        (anchor if reference is None else reference)[5, 3] = float("nan")
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    weight = (torch.rand(case.anchors, generator=generator) + 0.5).to(wide)
    weight[3] = 0
    weight = weight.to(DEVICE)
    call = {
        "anchor": anchor,
        "labels": own,
        "positive": positive,
        "reference": reference,
        "reference_labels": other,
        "exclude_labels": own + 1 if case.references else None,
        "weight": weight,
    }
    options = {
        "mining": case.mining,
        "k": case.k,
        "distance": case.distance,
        "margin": 0.3,
        "soft_margin": case.soft_margin,
        "swap": case.swap,
        "reduction": case.reduction,
        "semihard_fallback": case.fallback,
    }
    if case.not_a_number:
        return _check_selection(case, call)
    every = case.mining in ("all", "semihard")
    found = _public(call, options, BACKEND) if every else _operators(case, call, options)
    exact = {name: _exact(x) for name, x in call.items()}
    expected = _public(exact, options, "reference")
    for name, got, want in zip(("loss", "anchor", "positive", "reference"), found, expected, strict=True):
        if want is None:
            continue
        error = ((got.double().cpu() - want).norm() / want.norm()).item()
        if not error <= TOLERANCE[case.dtype]:
            return f"{name}: relative error {error:.2e}"
    return ""


def _exact(x: Tensor | None) -> Tensor | None:
    if x is None or not x.is_floating_point():
        return x if x is None else x.cpu()
    return x.cpu().double()


def _public(call: dict, options: dict, backend: str) -> tuple[Tensor | None, ...]:
    names = ("anchor", "positive", "reference")
    leaves = {name: None if call[name] is None else call[name].detach().requires_grad_() for name in names}
    with af.backends.backend(backend):
        loss = af.triplet_margin_loss(**(call | leaves), **options)
        given = [x for x in leaves.values() if x is not None]
        grads = iter(torch.autograd.grad(loss.sum(), given))
    return loss.detach(), *(None if leaves[name] is None else next(grads) for name in names)


def operators():
    """Those of the compiled extension."""
    from amkd_fast.ops.triplet import native

    return native.cuda


def _select(case: Case, call: dict) -> tuple[Tensor, Tensor]:
    return operators().select(
        call["anchor"],
        call["reference"],
        call["labels"],
        call["reference_labels"],
        None if call["exclude_labels"] is None else call["exclude_labels"][:, None],
        0 if call["reference"] is None else -1,
        DISTANCES.index(case.distance),
        case.k,
        call["positive"] is None,
    )


def _operators(case: Case, call: dict, options: dict) -> tuple[Tensor | None, ...]:
    """Loss and gradients by the operators themselves, which take two-byte rows as they are."""
    positive_index, negative_index = _select(case, call)
    rows = (
        call["anchor"],
        call["positive"],
        call["reference"],
        positive_index if call["positive"] is None else None,
        negative_index,
        call["weight"],
    )
    scalars = (
        DISTANCES.index(case.distance),
        options["margin"],
        case.soft_margin,
        case.swap,
        REDUCTIONS.index(case.reduction),
    )
    loss, stats = operators().terms(*rows, *scalars)
    grads = operators().backward(torch.ones_like(loss), *rows, stats, *scalars, case.deterministic)
    return loss, *grads


def _check_selection(case: Case, call: dict) -> str:
    """A row that is no number wins every selection it takes part in."""
    found = _select(case, call)
    exact = {name: _exact(x) for name, x in call.items()}
    is_batch = exact["reference"] is None
    reference = exact["anchor"] if is_batch else exact["reference"]
    other = exact["labels"] if is_batch else exact["reference_labels"]
    exclude = None if exact["exclude_labels"] is None else exact["exclude_labels"][:, None]
    rows = Rows(exact["anchor"], None, reference, exact["labels"], other, exclude, 0 if is_batch else None, is_batch)
    is_positive, is_negative = selection.positives(rows), selection.negatives(rows)
    d = pairwise(rows.anchor, rows.reference, case.distance)
    slots = selection.hard(d, is_positive, d, is_negative)
    for name, index, want, mask in (
        ("positive", found[0][:, None], slots.positive, is_positive),
        ("negative", found[1], slots.negative, is_negative),
    ):
        want = torch.where(mask.any(1, keepdim=True), want, -1)
        wrong = int((index.cpu() != want).sum())
        if wrong:
            return f"{name}: {wrong} of {len(want)} indices are others"
    return ""
