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
from benchmarks.baselines import nearest, there
from benchmarks.baselines import triplet as baselines
from benchmarks.baselines.triplet import MARGIN, METRIC_LEARNING, libraries, metric_learning
from benchmarks.contest import Answer, Contestant, Errors
from benchmarks.group import Goal, Group
from benchmarks.roofline import Work, both_ways

FP32 = torch.float32
WIDTH, CLASSES = 128, 16
MATRIX = 8192  # rows from which the specification, which holds all their distances, is not asked
# Of millions of triplets some lie so close to the edge of the hinge that fp32 decides otherwise than fp64.
EDGE_LIMIT = 1e-3
CHOICE_LIMIT = 1e-5  # of the distances of selected rows: equal ones may be exchanged
PRODUCT_LIMIT = 1.35  # of the time of the matrix product


def groups() -> list[Group]:
    fast = Goal("speed-up", 3.0)
    return [
        hard(128),
        hard(1024, goals=(fast,)),
        hard(4096, goals=(fast, Goal("memory", 24e6))),
        hard(32768, goals=(Goal("memory", 1e9),)),
        hard(1024, dtype=torch.bfloat16),
        hard(1024, distance="cosine"),
        semihard(1024),
        semihard(1024, fallback=True),
        topk(1024, 10),
        *(every(n, classes) for n in (512, 1024) for classes in (100, 10)),
        amkd(32, 128, 10),
        mined(1024),
        *(nearest_negatives(*sizes) for sizes in ((1024, 4096, 1), (4096, 4096, 1), (4096, 4096, 5))),
        *(select(count) for count in (1024, 4096)),
    ]


def hard(
    count: int, width: int = WIDTH, dtype: torch.dtype = FP32, distance: str = "euclidean", goals: tuple[Goal, ...] = ()
) -> Group:
    """From :data:`MATRIX` rows on ours alone, forward and backward together: who holds no matrix takes many seconds."""
    name, matrix = ("hard", "cdist") if distance == "euclidean" else (f"hard {distance}", f"{distance} matrix")
    tiled = baselines.tiled(distance)

    def others() -> list[Contestant]:
        return [Contestant("eager tiled", tiled), *libraries("hard", distance)]

    more = {"rivals": {matrix: baselines.hard(distance)}, "others": others, "reference": count <= 1024}
    if count >= MATRIX:
        more = {"together": True, "reference": False, "truth": lambda _, inputs: contest.truth(tiled, inputs)}
    return _loss(name, count, {"distance": distance}, width=width, dtype=dtype, goals=goals, **more)


def semihard(count: int, fallback: bool = False) -> Group:
    """Every pair of a class has a weight of its own in the gradient."""
    options = {"mining": "semihard", "semihard_fallback": fallback}
    name, pairs = "semihard fallback" if fallback else "semihard", count * count * WIDTH // CLASSES
    more = {"rivals": {"cdist, sorted": baselines.semihard(fallback)}, "others": partial(libraries, name)}
    return _loss(name, count, options, pairs, verify=_wide_gradient, **more)


def topk(count: int, k: int) -> Group:
    return _loss("topk", count, {"mining": "topk", "k": k}, more_sizes={"k": k}, rivals={"cdist": baselines.topk(k)})


def every(count: int, classes: int = CLASSES) -> Group:
    """All triplets; forward and backward together, as the others need seconds.

    Sorted distances say how often each counts, so that no triplet need be visited: the products are those of the
    distances, and in the backward pass that of a weight for every pair with the rows.
    """

    options, pairs = {"mining": "all", "reduction": "mean_nonzero"}, count * count * WIDTH
    more = {"others": partial(libraries, "all"), "verify": partial(contest.verify, limit=EDGE_LIMIT)}
    return _loss("all", count, options, pairs, classes=classes, together=True, **more)


def amkd(attacked: int, clean: int, width: int) -> Group:
    """The call of :class:`amkd_fast.losses.AMKDLoss`; one leaf has both sets, so that all its gradients are checked."""
    classes = 10

    def ours(rows: Tensor, labels: Tensor, source: Tensor, base: Tensor, target: Tensor) -> Tensor:
        anchor, clean = rows[:attacked], rows[attacked:]
        given = {"reference": clean, "reference_labels": labels, "exclude_labels": target[:, None]}
        return af.triplet_margin_loss(anchor, base, positive=clean[source], margin=MARGIN, **given)

    def draw() -> tuple[Tensor, ...]:
        draws = torch.Generator().manual_seed(0)
        rows = torch.randn(attacked + clean, width, generator=draws).requires_grad_()
        labels, source = (torch.randint(n, (m,), generator=draws) for n, m in ((classes, clean), (clean, attacked)))
        base = labels[source]
        return rows, labels, source, base, (base + torch.randint(1, classes, (attacked,), generator=draws)) % classes

    sizes, rivals = {"M": attacked, "B": clean, "D": width}, {"cdist": baselines.among_clean}
    size = (attacked + clean) * width * 4
    work = both_ways(Work(size, products=attacked * clean * width), Work(2 * size))
    return Group("triplet", "triplet_margin_loss AMKD", sizes, FP32, draw, ours, rivals, work)


def mined(count: int) -> Group:
    def distances(given: tuple[Tensor, ...], chosen: tuple[Tensor, ...]) -> Tensor:
        return _triplet_distances(*given, *chosen)

    def others() -> list[Contestant]:
        return [Contestant(METRIC_LEARNING, metric_learning("hard")[0])] if there(METRIC_LEARNING) else []

    work, sizes = Work(count * (WIDTH * 4 + 3 * 8), products=count * count * WIDTH // 2), _sizes(count)
    draw, rivals = partial(_batch, count, leaf=False), {"cdist": baselines.mined}
    return _search("mine_triplets hard", sizes, FP32, draw, af.mine_triplets, rivals, work, distances, others=others)


def nearest_negatives(count: int, others: int, k: int) -> Group:
    def draw() -> tuple[Tensor, ...]:
        rows, labels = _batch(count + others, leaf=False)
        return rows[:count], labels[:count], rows[count:], labels[count:]

    def distances(given: tuple[Tensor, ...], found: tuple[Tensor, Tensor]) -> Tensor:
        """Those returned, and those of the rows that the indices say; NaN for a row of the same class."""
        (rows, labels, reference, reference_labels), (returned, index) = given, found
        again = _distance(rows[:, None], reference[index])
        allowed = labels[:, None] != reference_labels[index]
        return torch.stack([returned.double(), torch.where(allowed, again, torch.nan)])

    ours, rivals = partial(af.nearest_negatives, k=k), {"cdist": baselines.nearest(k)}
    work = Work((count + others) * WIDTH * 4 + count * k * (4 + 8), products=count * others * WIDTH)
    sizes = {"N": count, "P": others, "D": WIDTH, "classes": CLASSES, "k": k}
    more = {"others": partial(nearest.libraries, k), "yardsticks": tuple(nearest.UNLABELLED)}

    def verify(entry: Contestant, given: tuple[Tensor, ...], expected: Answer) -> Errors:
        if entry.name in nearest.UNLABELLED:
            return _verify_unlabelled(entry, given, given[2], k)
        return _verify_choice(distances, entry, given, expected)

    return _search("nearest_negatives", sizes, FP32, draw, ours, rivals, work, distances, verify=verify, **more)


def select(count: int, width: int = WIDTH, classes: int = CLASSES, dtype: torch.dtype = FP32) -> Group:
    """The operator under the loss, beside what computes less: ``torch.mm`` of its shape, searches without labels."""

    def draw() -> tuple[Tensor, ...]:
        return *_batch(count, width, classes, dtype, leaf=False), torch.empty(count, count, dtype=dtype)

    def ours(rows: Tensor, labels: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        return selector(rows.device.type)(rows, labels)

    def multiply(rows: Tensor, _: Tensor, product: Tensor) -> Tensor:
        return torch.mm(rows, rows.mT, out=product)

    def distances(given: tuple[Tensor, ...], chosen: tuple[Tensor, Tensor]) -> Tensor:
        (rows, labels, _), (positive, negative) = given, chosen
        return _triplet_distances(rows, labels, torch.arange(count, device=rows.device), positive, negative[:, 0])

    def verify(entry: Contestant, given: tuple[Tensor, ...], expected: Answer) -> Errors:
        if entry.name in nearest.UNLABELLED:
            return _verify_unlabelled(entry, given, given[0], 2)
        if entry.name != "torch.mm":
            return _verify_choice(distances, entry, given, expected)
        rows = given[0].double()  # not the answer that is expected of ours: the product by itself
        return contest.verify(entry, given, Answer(rows @ rows.mT, None))

    def truth(_: Callable[..., Any], given: tuple[Tensor, ...]) -> Answer:
        rows, labels, _ = given
        return contest.truth(lambda *batch: _triplet_distances(*batch, *af.mine_triplets(*batch)), (rows, labels))

    work = Work(count * (width * dtype.itemsize + 2 * 8), products=count * count * width // 2)
    more = {"goals": (Goal("time", PRODUCT_LIMIT, "torch.mm", "forward"),), "verify": verify, "truth": truth}
    more |= {"reference": False, "yardsticks": ("torch.mm", *nearest.UNLABELLED)}
    more["others"] = lambda: [Contestant("torch.mm", multiply), *nearest.hard_libraries()]
    return _search("select", _sizes(count, width, classes), dtype, draw, ours, {}, work, distances, **more)


def selector(device: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The operator of the chosen backend alone, which takes two-byte rows as they are: indices [N] and [N, 1]."""
    operators = OPERATORS[backends.select("triplet", device)]
    return lambda rows, labels: operators.select(rows, None, labels, labels, None, 0, 0, 1, True)


def _loss(
    name: str,
    count: int,
    options: dict[str, Any],
    backward: int = 0,
    width: int = WIDTH,
    classes: int = CLASSES,
    dtype: torch.dtype = FP32,
    more_sizes: dict[str, int] | None = None,
    together: bool = False,
    **more: Any,
) -> Group:
    """``options`` of the public function; ``backward`` products; both directions alone; ``more`` of the group."""
    ours = partial(af.triplet_margin_loss, margin=MARGIN, **options)
    sizes, draw = {**_sizes(count, width, classes), **(more_sizes or {})}, partial(_batch, count, width, classes, dtype)
    size = count * width * dtype.itemsize
    # The gradient is written, too. What belongs to a few rows for each anchor, as after hard mining, is no product.
    work = both_ways(Work(size, products=count * count * width // 2), Work(2 * size, products=backward))
    work = {"both": work["both"]} if together else work
    return Group("triplet", f"triplet_margin_loss {name}", sizes, dtype, draw, ours, work=work, **more)


def _search(name, sizes, dtype, draw, ours, rivals, work, distances, **more) -> Group:
    """Checked by ``distances(inputs, result)`` of what was selected, not by its indices."""

    def truth(call: Callable[..., Any], given: tuple[Tensor, ...]) -> Answer:
        return contest.truth(lambda *inputs: distances(inputs, call(*inputs)), given)

    more = {"verify": partial(_verify_choice, distances), "truth": truth, **more}
    return Group("triplet", name, sizes, dtype, draw, ours, rivals, {"forward": work}, **more)


def _verify_choice(distances, entry: Contestant, given: tuple[Tensor, ...], expected: Answer) -> Errors:
    chosen = entry._replace(call=lambda *inputs: distances(inputs, entry.call(*inputs)))
    return contest.verify(chosen, given, expected, CHOICE_LIMIT)


def _verify_unlabelled(entry: Contestant, given: tuple[Tensor, ...], reference: Tensor, k: int) -> Errors:
    """The distances of the nearest rows of any class."""
    expected = torch.cdist(given[0].double(), reference.double()).topk(k, largest=False).values.clamp(min=0.05)
    distances = entry._replace(call=lambda *given: entry.call(*given)[0].clamp(min=0.05))  # to itself: rounding
    return contest.verify(distances, given, Answer(expected, None), CHOICE_LIMIT)


def _sizes(count: int, width: int = WIDTH, classes: int = CLASSES) -> dict[str, int]:
    return {"N": count, "D": width, "classes": classes}


def _batch(
    count: int, width: int = WIDTH, classes: int = CLASSES, dtype: torch.dtype = FP32, leaf: bool = True
) -> tuple[Tensor, Tensor]:
    """Rows of classes in turn, so that each anchor has a positive and all classes are of one size, or nearly."""
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(0)).to(dtype)
    return rows.requires_grad_(leaf), torch.arange(count) % classes


def _wide_gradient(entry: Contestant, inputs: tuple[Tensor, ...], expected: Answer) -> Errors:
    """The gradient in fp64; in the group's dtype the value alone.

    Of 10⁵ pairs some have a negative so close to the positive's distance that fp32 takes the next one. That hardly
    moves the loss, but one pair is a visible part of a gradient.
    """
    rows, *rest = inputs
    wide = contest.verify(entry, (rows.detach().double().requires_grad_(), *rest), expected)
    value = entry._replace(call=lambda *given: entry.call(*given).detach())
    return contest.verify(value, inputs, Answer(expected.value, None))._replace(grad=wide.grad)


def _triplet_distances(rows: Tensor, labels: Tensor, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Of anchor to positive and to negative in fp64, NaN where labels or places forbid them."""
    allowed = torch.stack(
        [(labels[anchor] == labels[positive]) & (anchor != positive), labels[anchor] != labels[negative]]
    )
    found = torch.stack([_distance(rows[anchor], rows[other]) for other in (positive, negative)])
    return torch.where(allowed, found, torch.nan)


def _distance(left: Tensor, right: Tensor) -> Tensor:
    return (left.double() - right.double()).norm(dim=-1)
