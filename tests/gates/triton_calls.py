"""The calls of the launchers that cover the configurations of every family's Triton kernels, for the gate to record.

A family yields its calls from a function of CALLS, on tensors without storage; `every` multiplies all choices out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from amkd_fast.backends import FAMILIES


class Call(NamedTuple):
    """A call of a launcher, and the kernels of it that must have 16-byte loads or stores."""

    label: str
    function: Callable[[], object]
    wide: tuple[str, ...] = ()
    wide_stores: tuple[str, ...] = ()


DIVERGENCES = ("forward", "reverse", "js", "soft_cross_entropy")
DISTANCES = ("euclidean", "sqeuclidean", "cosine")


def kl_call(launcher, shape, dtype, divergence, *, labels=None, weights=False, per_row=False, wide=()) -> Call:
    from amkd_fast.ops.kl import triton as kl
    from amkd_fast.ops.kl.reference import statistics_dtype

    empty = partial(torch.empty, device="meta")
    rows, _ = shape
    student, teacher = empty(shape, dtype=dtype), empty(shape, dtype=dtype)
    weight = empty(rows, dtype=statistics_dtype(dtype)) if weights else None
    targets = None if labels is None else empty(rows, dtype=labels)
    inputs = (student, teacher, weight, targets, weight if labels else None)
    scalars = (2.0, DIVERGENCES.index(divergence), 0.5, 4.0, 1.0, 0.1, -100, 2 * per_row)
    label = f"{list(shape)} {str(dtype)[6:]} {divergence}"
    label += (
        (f" labels:{str(labels)[6:]}" if labels else "")
        + (" weights" if weights else "")
        + (" rows" if per_row else "")
    )
    if launcher == "forward":
        return Call(label, lambda: kl.launch_forward(*inputs, *scalars), wide)
    stats = empty(6 * rows + 3, dtype=statistics_dtype(dtype))
    grad_loss = empty((rows,) if per_row else (), dtype=stats.dtype)
    return Call(label, lambda: kl.launch_backward(grad_loss, *inputs[:5], stats, *scalars), wide)


def kl_calls(every: bool) -> Iterator[Call]:
    """Each kind of tile, each dtype and each branch; `every` multiplies all of them out."""
    yield from decoupled_calls()
    # One tile and one program, the most a thread ever holds; rows; rows in several tiles; no alignment at all.
    shapes = {"alone": (128, 100), "most": (64, 512), "row": (4096, 1000), "long": (4, 50000), "many": (8192, 32768)}
    shapes |= {"odd": (300, 1001), "one": (5, 1), "ten": (128, 10)}
    dtypes = (torch.bfloat16, torch.float32, torch.float64, torch.float16)
    wide_of = {"row", "long", "many", "most"}
    kernels = ("kl_rows_kernel", "kl_chunk_kernel", "kl_chunk_mixture_kernel", "kl_grad_kernel")

    def call(launcher, name, dtype, divergence, **options):
        return kl_call(launcher, shapes[name], dtype, divergence, wide=kernels if name in wide_of else (), **options)

    if every:
        extras = [
            {"labels": labels, "weights": weights} for labels in (None, torch.int32, torch.int64) for weights in (0, 1)
        ]
        for launcher, name, dtype, divergence, extra in itertools.product(
            ("forward", "backward"), shapes, dtypes, DIVERGENCES, [*extras, {"per_row": True, "weights": True}]
        ):
            yield call(launcher, name, dtype, divergence, **extra)
        return
    full = {"labels": torch.int64, "weights": True}
    for launcher in ("forward", "backward"):
        for dtype, divergence in itertools.product(dtypes[:2], DIVERGENCES[:3]):
            yield call(launcher, "row", dtype, divergence, **full)
        yield call(launcher, "most", torch.float64, "js", **full)  # js keeps the most values alive
        yield call(launcher, "row", torch.bfloat16, "forward", weights=True, per_row=True)
        yield call(launcher, "row", torch.float16, "soft_cross_entropy", labels=torch.int32)
        yield call(launcher, "odd", torch.float32, "forward")
    yield call("forward", "alone", torch.float32, "forward", labels=torch.int64)
    yield call("forward", "most", torch.float32, "js", **full)
    yield call("forward", "row", torch.float64, "js", **full)
    yield call("forward", "long", torch.bfloat16, "forward", **full)
    for dtype in dtypes[:3]:
        yield call("forward", "many", dtype, "js", **full)

    yield from _kl_rows_calls(dtypes, every)


def _kl_rows_calls(dtypes, every: bool) -> Iterator[Call]:
    """The losses that hold whole rows: one program, several, rows in several tiles, no alignment at all."""
    from amkd_fast.ops.kl.consistency import triton as consistency
    from amkd_fast.ops.kl.reference import statistics_dtype
    from amkd_fast.ops.kl.standardised import triton as standardised

    shapes = {"alone": (128, 100), "row": (4096, 1000), "long": (4, 50000), "odd": (300, 1001)}
    for (name, shape), dtype in itertools.product(shapes.items(), dtypes):
        if not every and name != "row" and dtype != torch.float32:
            continue
        logits = torch.empty(shape, dtype=dtype, device="meta")
        empty = partial(torch.empty, dtype=statistics_dtype(dtype), device="meta")
        wide, label = name in ("row", "long"), f"{list(shape)} {str(dtype)[6:]}"
        kernels = ("kl_consistency_rows_kernel", "kl_consistency_grad_kernel") * wide
        arguments = (*(logits,) * 4, 2.0, 4.0)
        yield Call(label, partial(consistency.launch_forward, *arguments), kernels)
        arguments = (empty(()), *(logits,) * 4, empty(9 * shape[0] + 2), 2.0, 4.0)
        yield Call(label, partial(consistency.launch_backward, *arguments), kernels)
        kernels = ("kl_standardised_rows_kernel", "kl_standardised_grad_kernel") * wide
        for per_row in (False, True):
            weight = empty(shape[0]) if per_row else None
            arguments = (logits, logits, weight, 2.0, 0.1, 2 * per_row)
            tail = f"{label} rows {per_row}"
            yield Call(tail, partial(standardised.launch_forward, *arguments), kernels)
            grad_loss = empty(shape[0]) if per_row else empty(())
            arguments = (grad_loss, *arguments[:3], empty(8 * shape[0]), *arguments[3:])
            yield Call(tail, partial(standardised.launch_backward, *arguments), kernels)


def decoupled_calls() -> Iterator[Call]:
    """Of `kl_calls`: one program and many, one trip a row and several, each dtype, weights and labels."""
    from amkd_fast.ops.kl.decoupled import triton as decoupled
    from amkd_fast.ops.kl.reference import statistics_dtype

    empty = partial(torch.empty, device="meta")
    shapes = {"alone": (128, 100), "row": (4096, 1000), "long": (64, 32000), "most": (8192, 4096), "odd": (300, 1001)}
    kernels = ("decoupled_rows_kernel", "decoupled_grad_kernel")
    for (name, shape), dtype in itertools.product(shapes.items(), (torch.float32, torch.bfloat16, torch.float64)):
        per_row, weighted = name == "odd", name in ("row", "odd")
        logits, stat = empty(shape, dtype=dtype), statistics_dtype(dtype)
        labels = empty(shape[0], dtype=torch.int32 if name == "alone" else torch.int64)
        weight = empty(shape[0], dtype=stat) if weighted else None
        inputs, scalars = (logits, logits, labels, weight), (2.0, 1.0, 8.0, 0.1, 2 * per_row)
        grad_loss, stats = empty(shape[:1] if per_row else (), dtype=stat), empty(6 * shape[0], dtype=stat)
        wide = kernels if name in ("row", "long", "most") else ()
        label = f"decoupled {list(shape)} {str(dtype)[6:]}"
        yield Call(label, partial(decoupled.launch_forward, *inputs, *scalars), wide)
        yield Call(label, partial(decoupled.launch_backward, grad_loss, *inputs, stats, *scalars), wide)


def triplet_calls(every: bool) -> Iterator[Call]:
    """Each kernel in each dtype, distance and branch; `every` multiplies them out further."""
    from amkd_fast.ops.triplet import triton_rows, triton_select, triton_terms
    from amkd_fast.ops.triplet.types import statistics_dtype

    empty = partial(torch.empty, device="meta")
    index = partial(empty, dtype=torch.int64)
    # Differences in one split and in several, products; no alignment at all; narrow rows.
    sizes = {"small": (96, 96, 64), "split": (200, 512, 128), "large": (4096, 4096, 128)}
    sizes |= {"odd": (300, 301, 17), "narrow": (64, 512, 2)}
    dtypes = (torch.float32, torch.float64, *((torch.bfloat16, torch.float16) if every else ()))

    def rows(size, dtype):
        n, p, d = sizes[size]
        return empty(n, d, dtype=dtype), empty(p, d, dtype=dtype), index(n), index(p)

    def select(size, dtype, distance, k, precision="highest", wide=()):
        anchor, reference, labels, reference_labels = rows(size, dtype)
        exclude = empty(anchor.shape[0], 2, dtype=torch.int32) if k == 5 else None
        arguments = (anchor, reference, labels, reference_labels, exclude, -1, distance, k, k != 5)
        label = f"{list(sizes[size])} {str(dtype)[6:]} {DISTANCES[distance]} k {k} {precision}"
        return Call(label, partial(_with_precision, precision, triton_select.launch_select, arguments), wide)

    for precision, distance, k in itertools.product(("highest", "high"), (0, 2), (1, 5)):
        yield select("large", torch.float32, distance, k, precision, ("triplet_centre_kernel",) if k == 1 else ())
    for size, dtype, distance, k in itertools.product(("small", "split", "odd", "narrow"), dtypes, (0, 2), (1, 5, 100)):
        if every or (size, k) in (("small", 1), ("split", 5), ("odd", 1 if distance else 100)):
            yield select(size, dtype, distance, k)
    unlabelled = (rows("narrow", torch.float32)[0], None, None, None, None, 0, 1, 1, False)
    yield Call("batch without labels", partial(triton_select.launch_select, *unlabelled))

    def terms(size, dtype, distance, soft, swap, wide):
        anchor, reference, *_ = rows(size, dtype)
        n, k, reduction = anchor.shape[0], 3, {"small": 3, "split": 0, "odd": 1}[size]
        # What else there is to choose follows from soft and swap: explicit positives, weights, the batch itself.
        given = (anchor, anchor if soft else None, None if size == "small" and not swap else reference)
        stats = empty(n * (1 + k * (2 if swap else 1)) + 6, dtype=statistics_dtype(dtype))
        given += (None if soft else index(n), index(n, k), empty(n, dtype=stats.dtype) if swap else None)
        rule = (distance, 1.0, soft, swap, reduction)
        label = f"{list(sizes[size])} {str(dtype)[6:]} {DISTANCES[distance]} soft {soft} swap {swap}"
        yield Call(label, partial(triton_terms.launch_terms, *given, *rule), ("triplet_terms_kernel",) * wide)
        grad_loss = empty((n,) if reduction == 3 else (), dtype=stats.dtype)
        for deterministic in (False, True):
            call = partial(triton_terms.launch_backward, grad_loss, *given, stats, *rule, deterministic)
            yield Call(label, call, ("triplet_grad_kernel",) * wide)

    flags = list(itertools.product((False, True), repeat=2))
    for size, dtype, distance, (soft, swap) in itertools.product(("small", "split", "odd"), dtypes, range(3), flags):
        chosen = size == "split" and dtype == torch.float32 and distance != 1 and soft == swap
        chosen |= size == ("small" if distance else "odd") and swap and distance != 1 and soft == (distance == 2)
        if every or chosen:
            yield from terms(size, dtype, distance, soft, swap, size != "odd")

    def pairs(size, dtype, distance, semihard, fallback, soft):
        anchor, reference, labels, reference_labels = rows(size, dtype)
        (n, p), stats = (anchor.shape[0], reference.shape[0]), partial(empty, dtype=dtype)
        d_ap, exclude = (stats(n), index(n, 1)) if soft else (None, None)
        rest = (anchor, reference, stats(n), stats(p), d_ap, empty(n, dtype=torch.bool), labels, reference_labels)
        rest += (exclude, 0, distance, 1.0, semihard, fallback, soft)
        label = f"{list(sizes[size])} {str(dtype)[6:]} {DISTANCES[distance]} semihard {semihard} {fallback} soft {soft}"
        yield Call(label, partial(triton_rows.launch_rows_forward, stats(n, p), *rest))
        yield Call(label, partial(triton_rows.launch_rows_backward, stats(n, p), None, None, stats(n), *rest))

    modes = ((False, False), (True, False), (True, True))
    for size, dtype, distance, (semihard, fallback), soft in itertools.product(
        ("split", "odd"), dtypes[:2], range(3), modes, (False, True)
    ):
        if every or (distance != 1 and soft == (distance == 2) and fallback == semihard and size == "split"):
            yield from pairs(size, dtype, distance, semihard, fallback, soft)


def attack_calls(every: bool) -> Iterator[Call]:
    """Each rule, dtype, layout and branch of the step; each loss; the bases in one launch and in three; the draw."""
    from amkd_fast.ops.attack import triton_rows, triton_step
    from amkd_fast.ops.attack.operators import LOSSES, work_dtype

    empty = partial(torch.empty, device="meta")
    index = partial(empty, dtype=torch.int64)
    # In registers; read again for each figure; no alignment at all.
    shapes = {"small": (64, 3, 32, 32), "large": (64, 3, 224, 224), "odd": (7, 3, 9, 11)}
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    rules = ("linf", "l2", "l1", "unit", "newton")

    def step(size, dtype, rule, *, last=False, wide_grad=False, momentum=False, project=False, each=False):
        (b, c, *_), work = shapes[size], work_dtype(dtype)
        image = partial(empty, shapes[size], memory_format=torch.channels_last if last else torch.contiguous_format)
        row = partial(empty, b, dtype=work)
        ball = rule < 3
        tensors = (image(dtype=dtype), image(dtype=dtype), image(dtype=work if wide_grad else dtype))
        tensors += (image(dtype=dtype) if ball else None, row() if each else None, row() if each and ball else None)
        tensors += (None if ball else row(), image(dtype=work) if momentum else None)
        tensors += (*(empty(c, dtype=work) if each else None for _ in range(2)),)
        tensors += (empty(b, dtype=torch.bool) if each else None,)
        label = f"{list(shapes[size])} {str(dtype)[6:]} {rules[rule]} last {last} wide {wide_grad} momentum {momentum}"
        call = partial(triton_step.launch_step, *tensors, rule, 0.1, 0.3, 0.0, 1.0, 0.9, project, 31)
        return Call(f"{label} project {project} each {each}", call, ("attack_step_kernel",) * (size != "odd"))

    flags = list(itertools.product((False, True), repeat=5))
    for size, dtype, rule, (last, wide_grad, momentum, project, each) in itertools.product(
        shapes, dtypes, range(5), flags
    ):
        # The plain call, and the one that keeps the most alive, in registers and in both layouts.
        options = (wide_grad, momentum, project, each)
        plain = not any(options) and not last and size != "odd" and dtype in (torch.float32, torch.bfloat16)
        full = wide_grad == (dtype == torch.float16) and momentum == (rule < 3) and project and each
        full &= last == (size == "large") or rule == 2
        full &= dtype == torch.float32 or (rule in (1, 2, 4) and size != "odd")
        if (every and not (momentum and rule > 2)) or plain or full:
            yield step(size, dtype, rule, last=last, wide_grad=wide_grad, momentum=momentum, project=project, each=each)

    def objective(rows, classes, dtype, loss, softmax, targeted):
        target = index(rows) if targeted or (loss and classes == 10) else None
        arguments = (empty(rows, classes, dtype=dtype), index(rows), target, loss, softmax, targeted)
        label = f"{[rows, classes]} {str(dtype)[6:]} {LOSSES[loss]} softmax {softmax} targeted {targeted}"
        wide = ("attack_objective_kernel",) * (classes in (100, 1000, 32768))
        return Call(label, partial(triton_rows.launch_objective, *arguments), wide)

    losses = [(0, False), (1, False), (1, True), (2, False)]
    for (rows, classes), dtype, (loss, softmax), targeted in itertools.product(
        ((256, 10), (256, 100), (256, 1000), (256, 1001), (64, 32768)), dtypes, losses, (False, True)
    ):
        chosen = dtype == torch.float32 or (classes == 1000 and (loss == 2 or dtype == torch.bfloat16))
        if every or (chosen and targeted == (loss == 2)):
            yield objective(rows, classes, dtype, loss, softmax, targeted)

    for (rows, classes), dtype in itertools.product(
        ((2, 2), (256, 10), (256, 100), (256, 1000), (8192, 100), (64, 32768)), dtypes
    ):
        if not every and dtype != torch.float32 and (rows, classes) != (256, 100):
            continue
        logits, seeds = empty(rows, classes, dtype=dtype), index(()) if classes == 100 else None
        label = f"{[rows, classes]} {str(dtype)[6:]}"
        is_wide = classes * dtype.itemsize % 16 == 0
        bases = partial(triton_rows.launch_bases, logits, logits, index(rows), 64, seeds, 7)
        yield Call(f"bases {label}", bases, ("attack_bases_kernel",) * (is_wide and rows == 256 and classes == 100))
        draw = partial(triton_rows.launch_draw, logits, index(rows), index(rows) if seeds is None else None, seeds, 7)
        yield Call(f"draw {label}", draw, ("attack_draw_kernel",) * is_wide)
    yield from _particle_calls(every)


def _particle_calls(every: bool) -> Iterator[Call]:
    """One particle, few, and as many as there may be; each dtype and layout; with and without numbers of their own."""
    from amkd_fast.ops.attack import particles_triton
    from amkd_fast.ops.attack.operators import work_dtype

    empty = partial(torch.empty, device="meta")
    shapes = {"small": (64, 4, 3, 32, 32), "eight": (128, 8, 3, 32, 32), "one": (7, 1, 3, 9, 11), "most": (8, 64, 5, 7)}
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    flags = list(itertools.product((False, True), repeat=3))
    for size, dtype, (last, wide_grad, each) in itertools.product(shapes, dtypes, flags):
        (b, n, *image), work = shapes[size], work_dtype(dtype)
        if (last and len(image) < 3) or not (every or (last == wide_grad == each and (dtype.itemsize > 2 or each))):
            continue
        layout = torch.channels_last if last else torch.contiguous_format
        crowd = partial(empty, (b * n, *image), memory_format=layout)
        x, grad = (crowd(dtype=kind).unflatten(0, (b, n)) for kind in (dtype, work if wide_grad else dtype))
        x0 = empty((b, *image), dtype=dtype, memory_format=layout)
        numbers = (*(empty(b, dtype=work) for _ in range(2)), *(empty(image[0], dtype=work) for _ in range(2)))
        numbers = numbers if each else (None,) * 4
        h = 0.5 if each and n == 4 else 0.0
        call = partial(particles_triton.launch_svgd, x, x, grad, x0, *numbers, 0.1, 0.3, 0.0, 1.0, h)
        wide = ("attack_svgd_weights_kernel", "attack_svgd_step_kernel") * (size in ("small", "eight"))
        label = f"particles {list(shapes[size])} {str(dtype)[6:]} last {last} wide {wide_grad} each {each}"
        yield Call(label, call, wide)


def images_calls(every: bool) -> Iterator[Call]:
    """Each dtype and layout, with and without draws; images in one tile, in several, and of no alignment at all."""
    from amkd_fast.ops.images import triton as images

    empty = partial(torch.empty, device="meta")
    shapes = {"small": (128, 3, 32, 32), "grey": (128, 1, 28, 28), "large": (64, 3, 224, 224), "odd": (7, 5, 9, 11)}
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    flags = itertools.product((False, True), repeat=4)
    for size, dtype, (last, flip, pads, whole) in itertools.product(shapes, dtypes, list(flags)):
        shape = shapes[size]
        if not every and (flip != pads or whole == flip or (dtype != torch.float32 and (size == "grey" or not flip))):
            continue
        out = empty(shape, dtype=dtype, memory_format=torch.channels_last if last else torch.contiguous_format)
        shift = empty(shape[1], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
        index, seeds = (None, None) if whole else (empty(shape[0], dtype=torch.int64), empty((), dtype=torch.int64))
        arguments = (out, empty(shape, dtype=torch.uint8), index, shift, seeds, 0.1, 4 * pads, flip, 7)
        label = f"{list(shape)} {str(dtype)[6:]} last {last} flip {flip} pad {pads} all {whole}"
        wide = ("images_crop_flip_kernel",) * (size != "odd")
        yield Call(label, partial(images.launch_crop_flip, *arguments), wide_stores=wide)
    yield from augment_calls(every)


def augment_calls(every: bool) -> Iterator[Call]:
    """Images in one tile and in several, grey ones, with rows and a seed on the device or without."""
    from amkd_fast.ops.images import augment_triton as augment

    empty = partial(torch.empty, device="meta")
    for number, shape in enumerate(((128, 3, 32, 32), (128, 1, 28, 28), (64, 3, 224, 224), (7, 3, 9, 11))):
        for whole in (False, True):
            if every or whole == bool(number % 2):
                rows, seeds = (
                    (None, None) if whole else (empty(shape[0], dtype=torch.int64), empty((), dtype=torch.int64))
                )
                arguments = (empty(shape, dtype=torch.uint8), rows, seeds, 2**31, 2**14 - 1, 128, 7)
                yield Call(f"augment {list(shape)} all {whole}", partial(augment.launch_joint_augment, *arguments))


def segments_calls(every: bool) -> Iterator[Call]:
    """Each dtype alone and all together; one segment, a ResNet's, more than a launch takes; numbers and a tensor."""
    from amkd_fast.ops.segments import triton as segments

    empty = partial(torch.empty, device="meta")
    shapes = {
        "one": [(128, 64)],
        "ResNet": [(64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8), (64, 10)],
        "odd": [(3, 7, 5)],
        "many": [(64, 16, 32, 32)] * 20,
    }
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    for (size, chosen), dtype, weighted in itertools.product(shapes.items(), (*dtypes, None), (False, True)):
        if (
            not every
            and size != "ResNet"
            and (weighted or dtype != (torch.bfloat16 if size == "odd" else torch.float32))
        ):
            continue
        if not every and weighted and dtype not in (torch.float32, torch.float64):
            continue
        of = [dtype or dtypes[i % 4] for i in range(len(chosen))]
        pair = [empty(shape, dtype=kind) for shape, kind in zip(chosen, of, strict=True)]
        stat = segments.loss_dtype(pair)
        weights, factors = empty(len(pair), dtype=stat) if weighted else None, [0.5] * len(pair)
        label = f"{size} {str(dtype)[6:] if dtype else 'mixed'} weights {weighted}"
        wide = size != "odd"
        for with_grads in (False, True):
            call = partial(segments.launch_forward, pair, pair, weights, factors, with_grads)
            name = ("segments_sweep_kernel",) * wide
            yield Call(f"{label} forward grads {with_grads}", call, name, name * with_grads)
        call = partial(segments.launch_backward, empty((), dtype=stat), pair, pair, weights, factors)
        yield Call(f"{label} backward", call, ("segments_sweep_kernel",) * wide, ("segments_sweep_kernel",) * wide)
        if not weighted:
            call = partial(segments.launch_scale, pair, empty((), dtype=stat))
            name = ("segments_scale_kernel",) * wide
            yield Call(f"{label} scale", call, name, name)


def relations_calls(every: bool) -> Iterator[Call]:
    """Each dtype; both parts, either alone, with and without a gradient."""
    from amkd_fast.ops.relations import triton as relations

    empty = partial(torch.empty, device="meta")
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    weights = ((25.0, 50.0, True), (0.0, 1.0, True), (1.0, 0.0, True), (0.0, 1.0, False), (1.0, 0.0, False))
    for (rows, width), dtype, arguments in itertools.product(((64, 64), (37, 19)), dtypes, weights):
        if every or dtype == torch.float32 or arguments == weights[0]:
            pair = (empty(rows, width, dtype=dtype), empty(rows, 2 * width, dtype=dtype))
            label = f"{[rows, width]} {str(dtype)[6:]} {list(arguments)}"
            loads, stores = (), ()
            if rows % 16 == 0:
                loads = ("relations_angles_kernel", "relations_distances_kernel")
                stores = ("relations_gradient_kernel", "relations_pairs_kernel")
            yield Call(label, partial(relations.launch_loss, *pair, *arguments), loads, stores)


def _with_precision(precision: str, launcher: Callable, arguments: tuple) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        launcher(*arguments)
    finally:
        torch.set_float32_matmul_precision(before)


CALLS: dict[str, Callable[[bool], Iterable[Call]]] = {name: globals()[f"{name}_calls"] for name in FAMILIES}
