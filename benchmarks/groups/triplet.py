"""The triplet family: losses over selected triplets of rows [N, D], and the selections by themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.ops.triplet.operators import OPERATORS
from benchmarks import contest
from benchmarks.contest import Answer, Contestant, Errors
from benchmarks.group import Group, Target
from benchmarks.peers import triplet as peers
from benchmarks.peers.triplet import METRIC_LEARNING
from benchmarks.roofline import Work

MARGIN = 1.0
MATRIX = 8192  # rows from which the specification, which holds all their distances, is not asked
# Of millions of triplets some lie so close to the edge of the hinge that fp32 decides otherwise than fp64.
EDGE_LIMIT = 1e-3
CHOICE_LIMIT = 1e-5  # of the distances of selected rows: equal ones may be exchanged
PRODUCT_LIMIT = 1.35  # of the time of the matrix product

Check = Callable[[Contestant, tuple[Any, ...], Any], Errors]


def groups() -> list[Group]:
    fp32 = torch.float32
    return [
        hard(128, 128, 16, fp32, targets=_faster({METRIC_LEARNING: 3.0})),
        hard(1024, 128, 16, fp32, targets=_faster({METRIC_LEARNING: 15.0, "compile cdist": 5.0, "eager tiled": 3.0})),
        hard(
            4096,
            128,
            16,
            fp32,
            targets=(
                *_faster({METRIC_LEARNING: 20.0, "compile cdist": 5.0, "eager tiled": 3.0}),
                Target(3, "memory", 24e6),
            ),
        ),
        hard(32768, 128, 16, fp32, targets=(Target(3, "memory", 1e9),)),
        hard(1024, 128, 16, torch.bfloat16),
        hard(1024, 128, 16, fp32, "cosine"),
        semihard(1024, 128, 16, fp32),
        semihard(1024, 128, 16, fp32, fallback=True),
        topk(1024, 128, 16, 10, fp32),
        *(
            every(count, 128, classes, fp32, targets=_faster({METRIC_LEARNING: 100.0}))
            for count in (512, 1024)
            for classes in (100, 10)
        ),
        amkd(32, 128, 10, fp32),
        mined(1024, 128, 16, fp32),
        nearest_negatives(1024, 4096, 128, 16, 1, fp32),
        *(select(count, 128, 16, fp32) for count in (1024, 4096)),
    ]


def hard(
    count: int,
    width: int,
    classes: int,
    dtype: torch.dtype,
    distance: str = "euclidean",
    targets: tuple[Target, ...] = (),
) -> Group:
    """From :data:`MATRIX` rows on ours alone, forward and backward together: who holds no matrix takes many seconds."""

    def ours(rows: Tensor, labels: Tensor) -> Tensor:
        return af.triplet_margin_loss(rows, labels, margin=MARGIN, distance=distance)

    found = partial(
        Group,
        "triplet",
        "triplet_margin_loss hard" + ("" if distance == "euclidean" else f" {distance}"),
        {"N": count, "D": width, "classes": classes},
        dtype,
        _batch(count, width, classes, dtype),
        ours,
        work=_work(count * width * dtype.itemsize, count * count * width // 2),
        targets=targets,
    )
    if count < MATRIX:
        return found(rivals=lambda: peers.hard(MARGIN, distance), reference=count <= 1024)
    return found(
        directions=("both",),
        reference=False,
        truth=lambda _, inputs: contest.truth(peers.tiled(MARGIN, distance), inputs),
    )


def semihard(count: int, width: int, classes: int, dtype: torch.dtype, fallback: bool = False) -> Group:
    def ours(rows: Tensor, labels: Tensor) -> Tensor:
        return af.triplet_margin_loss(rows, labels, margin=MARGIN, mining="semihard", semihard_fallback=fallback)

    return Group(
        "triplet",
        "triplet_margin_loss semihard" + (" fallback" if fallback else ""),
        {"N": count, "D": width, "classes": classes},
        dtype,
        _batch(count, width, classes, dtype),
        ours,
        lambda: peers.semihard(MARGIN, fallback),
        # Every pair of a class has a weight of its own in the gradient.
        _work(count * width * dtype.itemsize, count * count * width // 2, count * count * width // classes),
        verify=_wide_gradient,
    )


def topk(count: int, width: int, classes: int, k: int, dtype: torch.dtype) -> Group:
    def ours(rows: Tensor, labels: Tensor) -> Tensor:
        return af.triplet_margin_loss(rows, labels, margin=MARGIN, mining="topk", k=k)

    return Group(
        "triplet",
        "triplet_margin_loss topk",
        {"N": count, "D": width, "classes": classes, "k": k},
        dtype,
        _batch(count, width, classes, dtype),
        ours,
        lambda: peers.topk(MARGIN, k),
        _work(count * width * dtype.itemsize, count * count * width // 2),
    )


def every(count: int, width: int, classes: int, dtype: torch.dtype, targets: tuple[Target, ...] = ()) -> Group:
    """All triplets; forward and backward together, as the others need seconds."""

    def ours(rows: Tensor, labels: Tensor) -> Tensor:
        return af.triplet_margin_loss(rows, labels, margin=MARGIN, mining="all", reduction="mean_nonzero")

    return Group(
        "triplet",
        "triplet_margin_loss all",
        {"N": count, "D": width, "classes": classes},
        dtype,
        _batch(count, width, classes, dtype),
        ours,
        lambda: peers.every(MARGIN),
        # Sorted distances say how often each counts, so that no triplet need be visited: the products are those of the
        # distances, and in the backward pass that of a weight for every pair with the rows.
        _work(count * width * dtype.itemsize, count * count * width // 2, count * count * width),
        directions=("both",),
        verify=partial(contest.verify, limit=EDGE_LIMIT),
        targets=targets,
    )


def amkd(attacked: int, clean: int, width: int, dtype: torch.dtype) -> Group:
    """The call of :class:`amkd_fast.losses.AMKDLoss`; one leaf has both sets, so that all its gradients are checked."""
    classes = 10

    def ours(rows: Tensor, labels: Tensor, source: Tensor, base: Tensor, target: Tensor) -> Tensor:
        anchor, reference = rows[:attacked], rows[attacked:]
        return af.triplet_margin_loss(
            anchor,
            base,
            positive=reference[source],
            reference=reference,
            reference_labels=labels,
            exclude_labels=target[:, None],
            margin=MARGIN,
        )

    def inputs(device: str) -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(0)
        rows = torch.randn(attacked + clean, width, generator=draws).to(device, dtype).requires_grad_()
        labels, source = (torch.randint(n, (m,), generator=draws) for n, m in ((classes, clean), (clean, attacked)))
        base = labels[source]
        target = (base + torch.randint(1, classes, (attacked,), generator=draws)) % classes
        return rows, *(part.to(device) for part in (labels, source, base, target))

    return Group(
        "triplet",
        "triplet_margin_loss AMKD",
        {"M": attacked, "B": clean, "D": width},
        dtype,
        inputs,
        ours,
        lambda: peers.among_clean(MARGIN, attacked),
        _work((attacked + clean) * width * dtype.itemsize, attacked * clean * width),
    )


def mined(count: int, width: int, classes: int, dtype: torch.dtype) -> Group:
    def distances(call: Callable[..., Any]) -> Callable[..., Tensor]:
        return lambda rows, labels: _triplet_distances(rows, labels, *call(rows, labels))

    verify, truth = _by_choice(distances)
    return Group(
        "triplet",
        "mine_triplets hard",
        {"N": count, "D": width, "classes": classes},
        dtype,
        _batch(count, width, classes, dtype, leaf=False),
        af.mine_triplets,
        peers.mined,
        {"forward": Work(count * (width * dtype.itemsize + 3 * 8), products=count * count * width // 2)},
        directions=("forward",),
        verify=verify,
        truth=truth,
    )


def nearest_negatives(count: int, others: int, width: int, classes: int, k: int, dtype: torch.dtype) -> Group:
    def ours(rows: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> tuple[Tensor, Tensor]:
        return af.nearest_negatives(rows, labels, reference, reference_labels, k=k)

    def inputs(device: str) -> tuple[Tensor, ...]:
        rows, labels = _batch(count + others, width, classes, dtype, leaf=False)(device)
        return rows[:count], labels[:count], rows[count:], labels[count:]

    def distances(call: Callable[..., Any]) -> Callable[..., Tensor]:
        """Those returned, and those of the rows that the indices say; NaN for a row of the same class."""

        def both(rows: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> Tensor:
            returned, index = call(rows, labels, reference, reference_labels)
            again = _distance(rows[:, None], reference[index])
            allowed = labels[:, None] != reference_labels[index]
            return torch.stack([returned.double(), torch.where(allowed, again, torch.nan)])

        return both

    verify, truth = _by_choice(distances)
    moved = (count + others) * width * dtype.itemsize + count * k * (dtype.itemsize + 8)
    return Group(
        "triplet",
        "nearest_negatives",
        {"N": count, "P": others, "D": width, "classes": classes, "k": k},
        dtype,
        inputs,
        ours,
        lambda: peers.nearest(k),
        {"forward": Work(moved, products=count * others * width)},
        directions=("forward",),
        verify=verify,
        truth=truth,
    )


def select(count: int, width: int, classes: int, dtype: torch.dtype) -> Group:
    """The operator under the loss beside ``torch.mm`` of its shape, which computes less: products, and no choice."""

    def inputs(device: str) -> tuple[Tensor, ...]:
        rows, labels = _batch(count, width, classes, dtype, leaf=False)(device)
        return rows, labels, torch.empty(count, count, dtype=dtype, device=device)

    def ours(rows: Tensor, labels: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return _operator(rows)(rows, None, labels, labels, None, 0, 0, 1, True)

    def multiply(rows: Tensor, _: Tensor, product: Tensor) -> Tensor:
        return torch.mm(rows, rows.mT, out=product)

    def distances(call: Callable[..., Any]) -> Callable[..., Tensor]:
        def of_selected(rows: Tensor, labels: Tensor, *rest: Tensor) -> Tensor:
            positive, negative = call(rows, labels, *rest)
            return _triplet_distances(rows, labels, torch.arange(count, device=rows.device), positive, negative[:, 0])

        return of_selected

    check, _ = _by_choice(distances)

    def verify(entry: Contestant, given: tuple[Tensor, ...], expected: Answer) -> Errors:
        if entry.ours:
            return check(entry, given, expected)
        rows = given[0].double()  # not the answer that is expected of ours: the product by itself
        return contest.verify(entry, given, Answer(rows @ rows.mT, None))

    def truth(_: Callable[..., Any], given: tuple[Tensor, ...]) -> Answer:
        rows, labels, _ = given
        return contest.truth(lambda *batch: _triplet_distances(*batch, *af.mine_triplets(*batch)), (rows, labels))

    return Group(
        "triplet",
        "select",
        {"N": count, "D": width, "classes": classes},
        dtype,
        inputs,
        ours,
        lambda: [Contestant("torch.mm", multiply)],
        {"forward": Work(count * (width * dtype.itemsize + 2 * 8), products=count * count * width // 2)},
        directions=("forward",),
        reference=False,
        verify=verify,
        truth=truth,
        targets=(Target(3, "time", PRODUCT_LIMIT, "torch.mm", "forward"),),
    )


def _faster(than: dict[str, float]) -> tuple[Target, ...]:
    return tuple(Target(3, "speed-up", bound, rival) for rival, bound in than.items())


def _batch(
    count: int, width: int, classes: int, dtype: torch.dtype, leaf: bool = True
) -> Callable[[str], tuple[Tensor, Tensor]]:
    """Rows of classes in turn, so that each anchor has a positive and all classes are of one size, or nearly."""

    def inputs(device: str) -> tuple[Tensor, Tensor]:
        rows = torch.randn(count, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        return rows.requires_grad_(leaf), (torch.arange(count) % classes).to(device)

    return inputs


def _work(size: int, forward: int, backward: int = 0) -> dict[str, Work]:
    """Of rows of ``size`` bytes and these products.

    A backward pass that comes later reads the rows again and writes their gradient. What belongs to a few rows for each
    anchor, as after hard mining, is no product.
    """
    return {
        "forward": Work(size, products=forward),
        "backward": Work(2 * size, products=backward),
        "both": Work(3 * size, products=forward + backward, launches=2),
    }


def _wide_gradient(entry: Contestant, inputs: tuple[Tensor, ...], expected: Answer) -> Errors:
    """The gradient in fp64; in the group's dtype the value alone.

    Of 10⁵ pairs some have a negative so close to the positive's distance that fp32 takes the next one. That hardly
    moves the loss, but one pair is a visible part of a gradient.
    """
    rows, *rest = inputs
    wide = contest.verify(entry, (rows.detach().double().requires_grad_(), *rest), expected)
    value = entry._replace(call=lambda *given: entry.call(*given).detach())
    return contest.verify(value, inputs, Answer(expected.value, None))._replace(grad=wide.grad)


def _by_choice(distances: Callable[[Callable[..., Any]], Callable[..., Tensor]]) -> tuple[Check, Callable[..., Answer]]:
    """Check and truth of a selection by the distances of what was selected, not by its indices."""

    def verify(entry: Contestant, inputs: tuple[Tensor, ...], expected: Answer) -> Errors:
        return contest.verify(entry._replace(call=distances(entry.call)), inputs, expected, CHOICE_LIMIT)

    return verify, lambda call, inputs: contest.truth(distances(call), inputs)


def _triplet_distances(rows: Tensor, labels: Tensor, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Of anchor to positive and to negative in fp64, NaN where labels or places forbid them."""
    allowed = torch.stack(
        [(labels[anchor] == labels[positive]) & (anchor != positive), labels[anchor] != labels[negative]]
    )
    found = torch.stack([_distance(rows[anchor], rows[other]) for other in (positive, negative)])
    return torch.where(allowed, found, torch.nan)


def _distance(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() - right.double()).norm(dim=-1)


def _operator(rows: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    return OPERATORS[backends.select("triplet", rows.device.type)].select
