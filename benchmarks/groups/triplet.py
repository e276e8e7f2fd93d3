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
from benchmarks.baselines import triplet as baselines
from benchmarks.baselines.triplet import METRIC_LEARNING
from benchmarks.contest import Answer, Contestant, Errors
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work

MARGIN = 1.0
MATRIX = 8192  # rows from which the specification, which holds all their distances, is not asked
# Of millions of triplets some lie so close to the edge of the hinge that fp32 decides otherwise than fp64.
EDGE_LIMIT = 1e-3
CHOICE_LIMIT = 1e-5  # of the distances of selected rows: equal ones may be exchanged
PRODUCT_LIMIT = 1.35  # of the time of the matrix product

Check = Callable[[Contestant, tuple[Any, ...], Any], Errors]
FP32 = torch.float32


def groups() -> list[Group]:
    largest = (*_faster({METRIC_LEARNING: 20.0, "compile cdist": 5.0, "eager tiled": 3.0}), Goal("memory", 24e6))
    return [
        hard(128, 128, 16, goals=_faster({METRIC_LEARNING: 3.0})),
        hard(1024, 128, 16, goals=_faster({METRIC_LEARNING: 15.0, "compile cdist": 5.0, "eager tiled": 3.0})),
        hard(4096, 128, 16, goals=largest),
        hard(32768, 128, 16, goals=(Goal("memory", 1e9),)),
        hard(1024, 128, 16, torch.bfloat16),
        hard(1024, 128, 16, distance="cosine"),
        semihard(1024, 128, 16),
        semihard(1024, 128, 16, fallback=True),
        topk(1024, 128, 16, 10),
        *(
            every(count, 128, classes, goals=_faster({METRIC_LEARNING: 100.0}))
            for count in (512, 1024)
            for classes in (100, 10)
        ),
        amkd(32, 128, 10),
        mined(1024, 128, 16),
        nearest_negatives(1024, 4096, 128, 16, 1),
        *(select(count, 128, 16) for count in (1024, 4096)),
    ]


def hard(
    count: int,
    width: int,
    classes: int,
    dtype: torch.dtype = FP32,
    distance: str = "euclidean",
    goals: tuple[Goal, ...] = (),
) -> Group:
    """From :data:`MATRIX` rows on ours alone, forward and backward together: who holds no matrix takes many seconds."""
    name = "hard" if distance == "euclidean" else f"hard {distance}"
    loss = partial(_loss, name, count, width, classes, dtype, {"distance": distance}, goals=goals)
    if count < MATRIX:
        return loss(rivals=lambda: baselines.hard(MARGIN, distance), reference=count <= 1024)
    tiled = baselines.tiled(MARGIN, distance)
    return loss(together=True, reference=False, truth=lambda _, inputs: contest.truth(tiled, inputs))


def semihard(count: int, width: int, classes: int, fallback: bool = False) -> Group:
    """Every pair of a class has a weight of its own in the gradient."""
    options = {"mining": "semihard", "semihard_fallback": fallback}
    rivals = partial(baselines.semihard, MARGIN, fallback)
    name, pairs = "semihard fallback" if fallback else "semihard", count * count * width // classes
    return _loss(name, count, width, classes, FP32, options, pairs, rivals=rivals, verify=_wide_gradient)


def topk(count: int, width: int, classes: int, k: int) -> Group:
    rivals = partial(baselines.topk, MARGIN, k)
    return _loss("topk", count, width, classes, FP32, {"mining": "topk", "k": k}, sizes={"k": k}, rivals=rivals)


def every(count: int, width: int, classes: int, goals: tuple[Goal, ...] = ()) -> Group:
    """All triplets; forward and backward together, as the others need seconds.

    Sorted distances say how often each counts, so that no triplet need be visited: the products are those of the
    distances, and in the backward pass that of a weight for every pair with the rows.
    """
    options = {"mining": "all", "reduction": "mean_nonzero"}
    more = {"rivals": partial(baselines.every, MARGIN), "verify": partial(contest.verify, limit=EDGE_LIMIT)}
    pairs = count * count * width
    return _loss("all", count, width, classes, FP32, options, pairs, together=True, goals=goals, **more)


def amkd(attacked: int, clean: int, width: int) -> Group:
    """The call of :class:`amkd_fast.losses.AMKDLoss`; one leaf has both sets, so that all its gradients are checked."""
    classes = 10

    def ours(rows: Tensor, labels: Tensor, source: Tensor, base: Tensor, target: Tensor) -> Tensor:
        anchor, clean = rows[:attacked], rows[attacked:]
        given = {"reference": clean, "reference_labels": labels, "exclude_labels": target[:, None]}
        return af.triplet_margin_loss(anchor, base, positive=clean[source], margin=MARGIN, **given)

    def inputs(device: str) -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(0)
        rows = torch.randn(attacked + clean, width, generator=draws).to(device).requires_grad_()
        labels, source = (torch.randint(n, (m,), generator=draws) for n, m in ((classes, clean), (clean, attacked)))
        base = labels[source]
        target = (base + torch.randint(1, classes, (attacked,), generator=draws)) % classes
        return rows, *(part.to(device) for part in (labels, source, base, target))

    sizes, work = (
        {"M": attacked, "B": clean, "D": width},
        _work((attacked + clean) * width * 4, attacked * clean * width),
    )
    rivals = partial(baselines.among_clean, MARGIN, attacked)
    return Group("triplet", "triplet_margin_loss AMKD", sizes, FP32, inputs, ours, rivals, work)


def mined(count: int, width: int, classes: int) -> Group:
    def distances(call: Callable[..., Any]) -> Callable[..., Tensor]:
        return lambda rows, labels: _triplet_distances(rows, labels, *call(rows, labels))

    work = Work(count * (width * 4 + 3 * 8), products=count * count * width // 2)
    inputs, sizes = _batch(count, width, classes, leaf=False), {"N": count, "D": width, "classes": classes}
    verify, truth = _by_choice(distances)
    return _search("mine_triplets hard", sizes, FP32, inputs, af.mine_triplets, baselines.mined, work, verify, truth)


def nearest_negatives(count: int, others: int, width: int, classes: int, k: int) -> Group:
    def inputs(device: str) -> tuple[Tensor, ...]:
        rows, labels = _batch(count + others, width, classes, leaf=False)(device)
        return rows[:count], labels[:count], rows[count:], labels[count:]

    def distances(call: Callable[..., Any]) -> Callable[..., Tensor]:
        """Those returned, and those of the rows that the indices say; NaN for a row of the same class."""

        def both(rows: Tensor, labels: Tensor, reference: Tensor, reference_labels: Tensor) -> Tensor:
            returned, index = call(rows, labels, reference, reference_labels)
            again = _distance(rows[:, None], reference[index])
            allowed = labels[:, None] != reference_labels[index]
            return torch.stack([returned.double(), torch.where(allowed, again, torch.nan)])

        return both

    ours, rivals = partial(af.nearest_negatives, k=k), partial(baselines.nearest, k)
    work = Work((count + others) * width * 4 + count * k * (4 + 8), products=count * others * width)
    sizes = {"N": count, "P": others, "D": width, "classes": classes, "k": k}
    return _search("nearest_negatives", sizes, FP32, inputs, ours, rivals, work, *_by_choice(distances))


def select(count: int, width: int, classes: int, dtype: torch.dtype = FP32) -> Group:
    """The operator under the loss beside ``torch.mm`` of its shape, which computes less: products, and no choice."""

    def inputs(device: str) -> tuple[Tensor, ...]:
        rows, labels = _batch(count, width, classes, dtype, leaf=False)(device)
        return rows, labels, torch.empty(count, count, dtype=dtype, device=device)

    def ours(rows: Tensor, labels: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return selector(rows.device.type)(rows, labels)

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

    rivals, sizes = lambda: [Contestant("torch.mm", multiply)], {"N": count, "D": width, "classes": classes}
    work = Work(count * (width * dtype.itemsize + 2 * 8), products=count * count * width // 2)
    goals = (Goal("time", PRODUCT_LIMIT, "torch.mm", "forward"),)
    more = {"reference": False, "goals": goals}
    return _search("select", sizes, dtype, inputs, ours, rivals, work, verify, truth, **more)


def selector(device: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The operator of the chosen backend alone, which takes two-byte rows as they are: indices [N] and [N, 1]."""
    operators = OPERATORS[backends.select("triplet", device)]
    return lambda rows, labels: operators.select(rows, None, labels, labels, None, 0, 0, 1, True)


def _loss(
    name: str,
    count: int,
    width: int,
    classes: int,
    dtype: torch.dtype,
    options: dict[str, Any],
    backward: int = 0,
    sizes: dict[str, int] | None = None,
    together: bool = False,
    **more: Any,
) -> Group:
    """``options`` of the public function; ``backward`` products; both directions alone; ``more`` of the group."""
    ours = partial(af.triplet_margin_loss, margin=MARGIN, **options)
    sizes = {"N": count, "D": width, "classes": classes, **(sizes or {})}
    work = _work(count * width * dtype.itemsize, count * count * width // 2, backward)
    inputs, work = _batch(count, width, classes, dtype), {"both": work["both"]} if together else work
    return Group("triplet", f"triplet_margin_loss {name}", sizes, dtype, inputs, ours, work=work, **more)


def _search(name, sizes, dtype, inputs, ours, rivals, work, verify, truth, **more) -> Group:
    more |= {"verify": verify, "truth": truth}
    return Group("triplet", name, sizes, dtype, inputs, ours, rivals, {"forward": work}, **more)


def _faster(than: dict[str, float]) -> tuple[Goal, ...]:
    return tuple(Goal("speed-up", bound, rival) for rival, bound in than.items())


def _batch(
    count: int, width: int, classes: int, dtype: torch.dtype = FP32, leaf: bool = True
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
