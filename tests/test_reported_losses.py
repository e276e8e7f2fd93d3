"""Inputs that losses of this kind were reported to fail with, and what is right for each.

The reports are of losses in public libraries, or came out of fuzzing. Right is what plain PyTorch gives where it can
compute the case, and what the docstrings promise where it cannot.
"""

from __future__ import annotations

import math
import threading
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import OPERATIONS
from cases.kl import DIVERGENCES, divergence_rows, logits
from cases.operation import flat, grown
from torch._dynamo.utils import counters

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.losses import StandardisedKLLoss

NAN, INF = math.nan, math.inf
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
PAIRS = torch.tensor([0, 0, 1, 1, 2, 2])


def call_of(family: str, call):
    call.family = family
    return call


def triplets(student, teacher, **options):
    """The teacher's rows as the reference set."""
    labels = PAIRS.to(student.device)
    return af.triplet_margin_loss(student, labels, reference=teacher, reference_labels=labels, **options)


def consistency(student, teacher, **options):
    return af.consistency_kl(student, teacher, 2.0 * student, teacher.flip(1), **options).total


# Every loss of a student's and a teacher's rows [6, 4].
LOSSES = {
    **{
        f"kl_div {name}": call_of("kl", partial(af.kl_div, temperature=2.0, divergence=name))
        for name in DIVERGENCES[:3]
    },
    "soft_cross_entropy": call_of("kl", partial(af.soft_cross_entropy, temperature=2.0)),
    "distillation_loss": call_of(
        "kl", lambda s, t, **o: af.distillation_loss(s, t, LABELS.to(s.device), temperature=2.0, **o).total
    ),
    "dkd_loss": call_of("kl", lambda s, t, **o: af.dkd_loss(s, t, LABELS.to(s.device), 2.0, **o)),
    "consistency_kl": call_of("kl", consistency),
    "standardised_kl_div": call_of("kl", af.standardised_kl_div),
    "rkd_distance_loss": call_of("relations", lambda s, t: af.rkd_distance_loss(s, t)),
    "rkd_angle_loss": call_of("relations", lambda s, t: af.rkd_angle_loss(s, t)),
    "segment_mse": call_of("segments", lambda s, t: af.segment_mse([s[:3], s[3:]], [t[:3], t[3:]])),
    **{
        f"triplet {mining}": call_of("triplet", partial(triplets, mining=mining))
        for mining in ("hard", "topk", "semihard", "all")
    },
    "triplet soft margin": call_of("triplet", partial(triplets, mining="all", soft_margin=True)),
}
by_loss = pytest.mark.parametrize("loss", LOSSES)
by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES)


def rows(device="cpu", dtype=torch.float32, shape=(6, 4), **more):
    student, teacher = (x.to(device) for x in logits(shape, dtype, **more))
    return student, teacher


def unless_missing(backend: str, name: str):
    """Skip a family that a backend does not have here."""
    reason = backends.available()[LOSSES[name].family][backend]
    if reason:
        pytest.skip(reason)


def gradient(loss, *inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    value = loss(*inputs)
    return value.detach(), *torch.autograd.grad(value, inputs)


# ---- teachers under inference_mode -----------------------------------------------------------------------------------


@by_loss
def test_teacher_made_under_inference_mode(backend, device, loss):
    """torch.inference_mode around the teacher, which plain PyTorch's losses take: value and gradient of a normal one.

    Reported of custom autograd functions: «Inference tensors cannot be saved for backward».
    """
    unless_missing(backend, loss)
    student, teacher = rows(device)
    expected = gradient(lambda s: LOSSES[loss](s, teacher), student)
    with torch.inference_mode():
        teacher = teacher.clone()
    assert teacher.is_inference()
    for a, b in zip(gradient(lambda s: LOSSES[loss](s, teacher), student), expected, strict=True):
        assert torch.equal(a, b)


def test_every_other_argument_made_under_inference_mode(backend, device):
    student, teacher = rows(device)
    weight, labels = torch.rand(6, device=device), LABELS.to(device)
    call = partial(af.distillation_loss, labels=labels, kl_weight=weight, ce_weight=weight)
    expected = gradient(lambda s: call(s, teacher).total, student)
    with torch.inference_mode():
        weight, labels = weight.clone(), labels.clone()
    call = partial(af.distillation_loss, labels=labels, kl_weight=weight, ce_weight=weight)
    for a, b in zip(gradient(lambda s: call(s, teacher).total, student), expected, strict=True):
        assert torch.equal(a, b)


# ---- one graph for all batch sizes -----------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if not o.waits], ids=str)
def test_exported_with_a_dynamic_batch(backend, device, operation):
    if operation.name == "joint_augment" and backend == "reference":
        pytest.skip("its reference goes from image to image")
    drawn = [
        {k: x.to(device) for k, x in operation.draw(grown(operation.small.shape, n), torch.float32).items()}
        for n in (12, 14, 20)
    ]
    names = [k for k in drawn[0] if all(k in each for each in drawn)]
    first, second, third = ({k: each[k] for k in names} for each in drawn)
    dynamic = {
        k: {i: torch.export.Dim.AUTO for i in range(x.dim()) if x.shape[i] != second[k].shape[i]}
        for k, x in first.items()
    }

    class Module(torch.nn.Module):
        def forward(self, given):
            return operation.call(**given, **{**operation.options, **operation.small.options})

    exported = torch.export.export(Module(), (first,), dynamic_shapes=(dynamic,)).module()
    for a, b in zip(flat(exported(third)), flat(Module()(third)), strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("reduction", ["mean", "batchmean"])
@pytest.mark.parametrize("masked", [False, True])
def test_tokens_are_compiled_once_for_all_sizes(backend, device, reduction, masked):
    """[B, L, K], of which both B and L change."""
    torch._dynamo.reset()
    counters.clear()
    call = partial(af.kl_div, temperature=2.0, reduction=reduction)
    compiled = torch.compile(call, dynamic=True, fullgraph=True, backend="aot_eager")
    for b, length in ((3, 7), (4, 9), (5, 6), (9, 11)):
        student, teacher = rows(device, shape=(b, length, 5))
        mask = torch.arange(length, device=device).expand(b, length) < 4 if masked else None
        found = compiled(student, teacher, mask=mask)
        torch.testing.assert_close(found, call(student, teacher, mask=mask))
    assert counters["stats"]["unique_graphs"] == 1


def test_the_first_call_of_an_operation_recompiles_no_other(backend, device):
    """The record of what ran where is no part of a graph's conditions."""
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(af.kl_div, fullgraph=True, backend="eager")
    student, teacher = rows(device)
    compiled(student, teacher)
    af.rkd_distance_loss(student, teacher)
    af.triplet_margin_loss(student, PAIRS.to(device))
    compiled(student, teacher)
    assert counters["stats"]["unique_graphs"] == 1


# ---- weight 0, masks -------------------------------------------------------------------------------------------------

# What padding is full of. −inf in both is a row without any class, NaN by the docstring.
PADDING = {"nan": NAN, "inf": INF, "-inf": -INF}
ROW_LOSSES = {
    **{f"kl_div {n}": partial(af.kl_div, divergence=n) for n in DIVERGENCES[:3]},
    "soft_cross_entropy": af.soft_cross_entropy,
    "dkd_loss": lambda s, t, *a, **o: af.dkd_loss(s, t, LABELS.to(s.device), *a, **o),
    "standardised_kl_div": af.standardised_kl_div,
}
KEPT = torch.tensor([True, False, True, True, False, True])
by_row_loss = pytest.mark.parametrize("loss", ROW_LOSSES)


def padded(device, value, dtype=torch.float32, classes=4):
    """Two networks' logits, with `value` in the rows that KEPT leaves out."""
    student, teacher = rows(device, dtype, (6, classes))
    hidden = ~KEPT.to(device)[:, None]
    return student, teacher, student.masked_fill(hidden, value), teacher.masked_fill(hidden, value)


@by_row_loss
@pytest.mark.parametrize("value", PADDING.values(), ids=PADDING)
@pytest.mark.parametrize("classes", [4, 40])
def test_weight_zero_hides_its_row(backend, device, loss, value, classes):
    """Value and gradients are those of the rows that are left, and exactly 0 in the others: 0 · NaN is NaN, which is
    what multiplying a loss by a mask gives.

    Reported of losses over padded sequences, whose padding holds what an earlier layer left.
    """
    call = partial(ROW_LOSSES[loss], temperature=2.0, reduction="sum")
    student, teacher, bad_student, bad_teacher = padded(device, value, classes=classes)
    kept = KEPT.to(device)
    weight = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.0, 0.3], device=device)
    expected = gradient(lambda s, t, w: call(s, t, weight=w), student, teacher, weight)
    found = gradient(lambda s, t, w: call(s, t, weight=w), bad_student, bad_teacher, weight)
    torch.testing.assert_close(found[0], expected[0])
    for a, b in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(a[kept], b[kept])
        assert not a[~kept].any()
    unreduced = partial(ROW_LOSSES[loss], temperature=2.0, reduction="none")
    found = gradient(lambda s: unreduced(s, bad_teacher, weight=weight).sum(), bad_student)
    assert not found[1][~kept].any()
    assert not unreduced(bad_student, bad_teacher, weight=weight)[~kept].any()


@by_row_loss
@pytest.mark.parametrize("value", PADDING.values(), ids=PADDING)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("as_weight", [False, True], ids=["mask", "bool weight"])
def test_mask_leaves_rows_out(backend, device, loss, value, reduction, as_weight):
    """The loss of the rows that are left, with their number as the denominator; a bool weight is a mask."""
    kept = KEPT.to(device)
    student, teacher, bad_student, bad_teacher = padded(device, value)
    call = partial(ROW_LOSSES[loss], temperature=2.0, reduction=reduction)
    given = {"weight": kept} if as_weight else {"mask": kept}
    every = ROW_LOSSES[loss](student, teacher, temperature=2.0, reduction="none")
    expected = {"none": every.where(kept, 0.0), "sum": every[kept].sum()}.get(reduction, every[kept].mean())
    torch.testing.assert_close(call(bad_student, bad_teacher, **given), expected)
    _, grad = gradient(lambda s: call(s, bad_teacher, **given).sum(), bad_student)
    assert torch.isfinite(grad).all()
    assert not grad[~kept].any()
    nothing = call(bad_student, bad_teacher, mask=torch.zeros_like(kept))
    assert not nothing.any()


def test_mask_of_sequences(backend, device):
    """[B, L, K]: batchmean divides by the sequences that have a token left."""
    student, teacher = rows(device, shape=(3, 4, 5))
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool, device=device)
    every = af.kl_div(student, teacher, reduction="none")
    torch.testing.assert_close(af.kl_div(student, teacher, mask=mask), every[mask].sum() / 2)
    torch.testing.assert_close(af.kl_div(student, teacher, mask=mask, reduction="mean"), every[mask].mean())


def test_labels_of_hidden_rows_may_be_anything(backend, device):
    """Padding's label, −100, is no class; dkd_loss has no ignore_index."""
    student, teacher = rows(device)
    labels = LABELS.to(device).where(KEPT.to(device), -100)
    expected = af.dkd_loss(student, teacher, LABELS.to(device), weight=KEPT.to(device).float())
    torch.testing.assert_close(af.dkd_loss(student, teacher, labels, weight=KEPT.to(device).float()), expected)
    torch.testing.assert_close(af.dkd_loss(student, teacher, labels, mask=KEPT.to(device)), expected * 6 / 4)
    labels = LABELS.to(device).where(KEPT.to(device), 77)
    assert af.distillation_loss(student, teacher, labels, mask=KEPT.to(device)).total.isfinite()


@pytest.mark.parametrize("ignored_rows", ["keep", "drop"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_distillation_of_what_is_there(backend, device, ignored_rows, masked, weights):
    """By hand: CE over the labelled rows that are left, divergence over the rows that are left; "drop" leaves out what
    is not labelled too, as trainers of language models do with prompts."""
    student, teacher = rows(device, torch.float64)
    labels = torch.tensor([0, -100, 2, -100, 1, 3], device=device)
    mask = KEPT.to(device) if masked else torch.ones_like(KEPT, device=device)
    a = torch.rand(6, dtype=torch.float64, device=device) if weights else 0.3
    b = torch.rand(6, dtype=torch.float64, device=device) if weights else 0.6
    ce = F.cross_entropy(student, labels, reduction="none")
    kl = 4.0 * divergence_rows(student, teacher, 2.0, "forward")
    labelled, counted = mask & (labels != -100), mask if ignored_rows == "keep" else mask & (labels != -100)
    expected = ((a * ce)[labelled].mean() if not weights else (a * ce)[labelled].sum() / labelled.sum()) + (
        (b * kl)[counted].mean() if not weights else (b * kl)[counted].sum() / counted.sum()
    )
    bad = ~mask[:, None]
    found = af.distillation_loss(
        student.masked_fill(bad, NAN),
        teacher.masked_fill(bad, NAN),
        labels.masked_fill(~mask, 55),
        temperature=2.0,
        ce_weight=a,
        kl_weight=b,
        mask=mask if masked else None,
        ignored_rows=ignored_rows,
    )
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.ce, ce[labelled].mean())
    torch.testing.assert_close(found.kl, kl[counted].mean())


def test_each_part_of_a_distillation_hides_its_own(backend, device):
    """A teacher without an opinion on some images (NaN), images without a label, and both."""
    student, teacher = rows(device)
    labels = torch.tensor([0, 1, -100, -100, 1, 3], device=device)
    seen = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0], device=device)
    bad_teacher = teacher.masked_fill(seen[:, None] == 0, NAN)
    bad_student = student.clone()
    bad_student[3] = NAN  # of which nothing is left
    call = partial(af.distillation_loss, labels=labels, kl_weight=seen, ce_weight=0.5)
    expected = gradient(lambda s: call(s, teacher).total, student)
    found = gradient(lambda s: call(s, bad_teacher).total, bad_student)
    torch.testing.assert_close(found, expected)
    assert not found[1][3].any()


@pytest.mark.parametrize("part", ["kl", "ce"])
def test_a_part_of_weight_zero_is_not_in_the_total(backend, device, part):
    """0 as a number: the part is reported, and neither the total nor the gradient has it."""
    student, teacher = rows(device)
    labels = LABELS.to(device)
    if part == "kl":
        call = partial(af.distillation_loss, teacher=teacher * NAN, labels=labels, kl_weight=0.0, ce_weight=1.0)
        expected = gradient(lambda s: F.cross_entropy(s, labels), student)
    else:
        call = partial(af.distillation_loss, teacher=teacher, labels=labels, kl_weight=1.0, ce_weight=0.0)
        expected = gradient(lambda s: af.kl_div(s, teacher, 4.0), student)
    torch.testing.assert_close(gradient(lambda s: call(s).total, student), expected)
    for loss in ROW_LOSSES.values():
        value, grad = gradient(lambda s, loss=loss: loss(s, teacher * NAN, weight=0.0), student)
        assert not value.any()
        assert not grad.any()


@pytest.mark.parametrize("as_tensor", [False, True])
def test_segment_of_weight_zero_is_not_read(backend, device, as_tensor):
    reason = backends.available()["segments"][backend]
    if reason:
        pytest.skip(reason)
    student, teacher = rows(device)
    weights = torch.tensor([2.0, 0.0], device=device) if as_tensor else [2.0, 0.0]
    for bad in (NAN, INF):
        value, *grads = gradient(
            lambda a, b, bad=bad: af.segment_mse([a, b], [teacher, teacher], weights), student, student * bad
        )
        torch.testing.assert_close(value, 2.0 * F.mse_loss(student, teacher))
        assert not grads[1].any()
    mask = torch.tensor([True, False], device=device)
    torch.testing.assert_close(af.segment_mse([student, student * NAN], [teacher] * 2, mask), value / 2.0)


def test_bool_weights_of_anchors(backend, device):
    reason = backends.available()["triplet"][backend]
    if reason:
        pytest.skip(reason)
    anchor, _ = rows(device)
    labels, kept = PAIRS.to(device), KEPT.to(device)
    expected = af.triplet_margin_loss(anchor, labels, weight=kept.float())
    assert torch.equal(af.triplet_margin_loss(anchor, labels, weight=kept), expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mask": torch.ones(6)}, "mask.dtype=torch.float32: must be bool"),
        ({"mask": torch.ones(6).long()}, "mask.dtype=torch.int64: must be bool"),
        ({"mask": torch.ones(5, dtype=torch.bool)}, "mask.shape=(5,)"),
        ({"mask": [True] * 6}, "mask is a list"),
        ({"weight": torch.ones(5, dtype=torch.bool)}, "weight.shape=(5,)"),
    ],
    ids=str,
)
def test_bad_masks_are_named(given, words):
    for loss in ROW_LOSSES.values():
        with pytest.raises((TypeError, ValueError)) as caught:
            loss(*rows(), **given)
        assert str(caught.value).startswith(words)
    with pytest.raises(ValueError, match="ignored_rows='all': must be one of 'keep', 'drop'"):
        af.distillation_loss(*rows(), LABELS, ignored_rows="all")


# ---- torch.func ------------------------------------------------------------------------------------------------------


@by_loss
def test_functional_transforms(loss):
    """grad, vmap, jacrev, jvp and hessian; of an autograd.Function without setup_context each of them raises, and under
    torch.compile torch.func.grad was silently another gradient."""
    student, teacher = rows(dtype=torch.float64)
    direction = torch.ones_like(student).cumsum(1)

    def call(s):
        return LOSSES[loss](s, teacher)

    value, grad = gradient(call, student)
    near = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
    near(torch.func.grad(call)(student), grad)
    near(torch.func.jacrev(call)(student), grad)
    near(torch.func.jvp(call, (student,), (direction,)), (value, (grad * direction).sum()))
    near(torch.func.vmap(call)(torch.stack([student, 2.0 * student])), torch.stack([value, call(2.0 * student)]))
    near(torch.func.vmap(torch.func.grad(call))(student[None]), grad[None])
    assert torch.func.hessian(call)(student).shape == (6, 4, 6, 4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(student, direction)
        near(torch.autograd.forward_ad.unpack_dual(call(dual)).tangent, (grad * direction).sum())
    torch._dynamo.reset()
    near(torch.compile(torch.func.grad(call), backend="aot_eager")(student), grad)


@by_divergence
def test_gradients_of_every_sample(divergence):
    """As differential privacy wants them: vmap over grad, against one sample after the other."""
    loss = af.soft_cross_entropy if divergence == "soft_cross_entropy" else partial(af.kl_div, divergence=divergence)
    student, teacher = rows(dtype=torch.float64)
    layer = torch.nn.Linear(4, 4).double()
    parameters = {n: p.detach() for n, p in layer.named_parameters()}

    def one(parameters, x, t):
        return loss(torch.func.functional_call(layer, parameters, (x[None],)), t[None], 2.0)

    found = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(parameters, student, teacher)
    for i in range(6):
        expected = torch.autograd.grad(loss(layer(student[i : i + 1]), teacher[i : i + 1], 2.0), layer.parameters())
        for a, b in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(a[i], b)


@by_loss
def test_gradients_for_many_upstream_ones(backend, device, loss):
    """torch.func.vmap over a backward pass of the fast graph."""
    unless_missing(backend, loss)
    student, teacher = rows(device)
    student.requires_grad_()
    value = LOSSES[loss](student, teacher)
    once = torch.autograd.grad(value, student, retain_graph=True)[0]
    many = torch.func.vmap(lambda g: torch.autograd.grad(value, student, g, retain_graph=True)[0])
    torch.testing.assert_close(many(torch.tensor([1.0, 3.0], device=device)), torch.stack([once, 3.0 * once]))


@by_loss
def test_second_derivative_where_the_teacher_is_made_of_the_student(backend, device, loss):
    """Self-distillation and views of one tensor: each way through the graph counts once. The differentiable gradient
    counted those through the other argument twice."""
    unless_missing(backend, loss)
    student, _ = rows(device, torch.float64)

    def call(x):
        return LOSSES[loss](x, x.flip(1) * 0.5 + 1.0)

    x = student.clone().requires_grad_()
    once = torch.autograd.grad(call(x), x)[0]
    (twice,) = torch.autograd.grad(call(x), x, create_graph=True)
    torch.testing.assert_close(twice.detach(), once, rtol=1e-9, atol=1e-12)


def test_transforms_do_not_fall_back_in_silence(backend, device):
    """A backend that was asked for by name never gives way: the reference serves torch.func."""
    student, teacher = rows(device)
    if backend == "reference":
        assert torch.func.grad(af.kl_div)(student, teacher).shape == student.shape
    else:
        with pytest.raises(RuntimeError, match=r"asked for by name.*torch\.func"):
            torch.func.grad(af.kl_div)(student, teacher)


# ---- rows that are not finite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mining", ["hard", "topk", "semihard", "all"])
@pytest.mark.parametrize("distance", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("width", [4, 40])
def test_triplets_with_a_row_that_is_not_finite(backend, device, mining, distance, value, width):
    """One rule for all backends, distances and modes: the loss is NaN, and so are the gradients of its rows. It was
    finite, 4e37, or the row was left out.

    An embedding network that overflows in half precision gives such rows.
    """
    reason = backends.available()["triplet"][backend]
    if reason:
        pytest.skip(reason)
    anchor, _ = rows(device, shape=(6, width))
    anchor[1, 2] = value
    labels = PAIRS.to(device)
    for more in ({}, {"soft_margin": True}, {"positive": anchor.flip(0)}):
        loss, grad = gradient(
            lambda x, more=more: af.triplet_margin_loss(x, labels, mining=mining, k=2, distance=distance, **more),
            anchor,
        )
        assert loss.isnan()
        assert grad[1].isnan().any()
        assert not grad.isinf().any()


def test_nearest_negative_that_is_not_finite(backend, device):
    """First of all, as a NaN row is, and its distance is NaN."""
    reason = backends.available()["triplet"][backend]
    if reason:
        pytest.skip(reason)
    reference, _ = rows(device)
    reference[5, 0] = INF
    labels = PAIRS.to(device)
    distances, indices = af.nearest_negatives(reference[:4], labels[:4], reference, labels, k=2)
    assert (indices[:, 0] == 5).all()
    assert distances[:, 0].isnan().all()
    assert distances[:, 1].isfinite().all()


# ---- crashes and corners ---------------------------------------------------------------------------------------------


def test_freed_storage_is_refused(backend, device):
    """`untyped_storage().resize_(0)`, by which trainers free logits: an error, as torch's own operators give it."""
    if backend != "cpu":
        pytest.skip("of the compiled CPU kernels; torch's own, and Triton's, look themselves")

    def freed(x):
        x = x.clone()
        x.untyped_storage().resize_(0)
        return x

    student, teacher = rows()
    weight, labels = torch.ones(6), LABELS.clone()
    calls = {
        "student": lambda: af.kl_div(freed(student), teacher),
        "a view": lambda: af.kl_div(freed(student)[1:], teacher[1:]),
        "teacher": lambda: af.kl_div(student, freed(teacher)),
        "weight": lambda: af.kl_div(student, teacher, weight=freed(weight)),
        "labels": lambda: af.dkd_loss(student, teacher, freed(labels)),
        "distillation": lambda: af.distillation_loss(student, teacher, freed(labels)),
        "standardised": lambda: af.standardised_kl_div(freed(student), teacher),
        "consistency": lambda: af.consistency_kl(freed(student), teacher, student, teacher),
        "relations": lambda: af.rkd_distance_loss(freed(student), teacher),
        "segments": lambda: af.segment_mse([freed(student)], [teacher]),
        "anchor": lambda: af.triplet_margin_loss(freed(student), PAIRS),
        "every pair": lambda: af.triplet_margin_loss(freed(student), PAIRS, mining="all"),
    }
    for call in calls.values():
        with pytest.raises(RuntimeError, match=r"storage"):
            call()


def test_raw_operators_refuse_what_is_no_choice():
    """`kl_forward(divergence=99)` returned memory that nobody had written."""
    if backends.build_info() is None:
        pytest.skip("no compiled extension")
    student, teacher = rows()
    forward = torch.ops.amkd_fast.kl_forward
    for divergence, reduction in ((99, 0), (-1, 0), (0, 3), (0, -1)):
        with pytest.raises(RuntimeError, match="must be"):
            forward(student, teacher, None, None, None, 1.0, divergence, 0.5, 1.0, 1.0, 0.0, -100, reduction)


def test_a_cross_entropy_weight_without_labels(backend, device):
    """It has no part in the loss, and so no gradient; the backward pass raised on the CPU."""
    student, teacher = rows(device)
    weight = torch.rand(6, device=device, requires_grad=True)
    student.requires_grad_()
    af.distillation_loss(student, teacher, None, ce_weight=weight).total.backward()
    assert weight.grad is None or not weight.grad.any()
    assert student.grad.any()


def test_backend_of_a_thread():
    """Blocks that two threads leave in the order in which they entered them; either was forced for ever."""
    entered, left = threading.Event(), threading.Event()
    student, teacher = rows()

    def other():
        with backends.backend("reference"):
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    ran = backends._AUTO["cpu"][0]
    thread.start()
    entered.wait(10)
    af.kl_div(student, teacher)
    assert backends.last("kl") == ran  # the other thread's block is not ours
    with backends.backend("reference"):
        left.set()
        thread.join()
        af.kl_div(student, teacher)
        assert backends.last("kl") == "reference"
    af.kl_div(student, teacher)
    assert backends.last("kl") == ran
    torch._dynamo.reset()
    compiled = torch.compile(af.kl_div, fullgraph=True, backend="eager")
    for name in ("reference", "auto", "reference", "auto"):
        with backends.backend(name):
            compiled(student, teacher)
        assert backends.last("kl") == (ran if name == "auto" else name)


def test_segments_of_mixed_dtypes_have_the_accuracy_of_the_loss(backend, device):
    """Any fp64 segment makes the loss fp64; the sums of the fp32 ones were fp32's."""
    reason = backends.available()["segments"][backend]
    if reason:
        pytest.skip(reason)
    student, teacher = rows(device, shape=(300, 41))
    loss, a, b = gradient(lambda a, b: af.segment_mse([a, b], [teacher, teacher.double()]), student, student.double())
    exact = 2.0 * F.mse_loss(student.double(), teacher.double())
    torch.testing.assert_close(loss, exact, rtol=1e-13, atol=0.0)
    assert (a.dtype, b.dtype) == (torch.float32, torch.float64)


@pytest.mark.parametrize("loss", ["distillation_loss", "dkd_loss"])
def test_the_first_bad_label_is_named(backend, device, loss):
    """Of several, whatever thread finds which."""
    if device.type != "cpu" or backend == "cuda":
        pytest.skip("labels are not looked at")
    student, teacher = rows(shape=(5000, 20))
    labels = torch.zeros(5000, dtype=torch.int64)
    labels[[100, 1234, 2600, 4999]] = 20
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with pytest.raises(ValueError, match=r"labels\[100\]=20: must be from 0 to 19"):
            getattr(af, loss)(student, teacher, labels)
    finally:
        torch.set_num_threads(threads)


def test_embeddings_without_a_column_are_refused():
    """Nothing to tell them apart by."""
    empty, wide = torch.zeros(6, 0), torch.zeros(6, 3)
    for call in (
        lambda: af.triplet_margin_loss(empty, PAIRS),
        lambda: af.mine_triplets(empty, PAIRS),
        lambda: af.nearest_negatives(empty, PAIRS, empty, PAIRS),
        lambda: af.rkd_distance_loss(empty, wide),
        lambda: af.rkd_angle_loss(wide, empty),
    ):
        with pytest.raises(ValueError, match=r"shape=\(6, 0\): must be .* at least one column"):
            call()


@pytest.mark.parametrize(("classes", "scale"), [(20001, 30.0), (100, 30.0), (10, 10.0)])
def test_reverse_gradient_of_nearly_one_hot_rows(backend, device, classes, scale):
    """Where q is nearly 1 for a class, q (log q/p − KL) is a difference of hundreds of which almost nothing is left."""
    if backends.INTERPRETING and classes > 10000:
        classes = 5000
    student, teacher = rows(device, shape=(4, classes), scale=scale)

    def exact(s, t):
        return divergence_rows(s, t, 0.5, "reverse").sum()

    truth = gradient(lambda s: exact(s, teacher.double()), student.double())[1]
    top = student.argmax(1, keepdim=True)  # where fp64 cancels too: a row of a gradient adds up to 0
    truth.scatter_(1, top, -truth.scatter(1, top, 0.0).sum(1, keepdim=True))
    eager = gradient(lambda s: exact(s, teacher), student)[1]
    call = partial(af.kl_div, temperature=0.5, divergence="reverse", scale_by_t2=False, reduction="sum")
    found = gradient(lambda s: call(s, teacher), student)[1]
    size = truth.norm(dim=1)
    error = [((x.double() - truth).norm(dim=1) / size)[size > 1e-20].max() for x in (found, eager)]
    assert error[0] <= 3 * error[1] + 2e-6
    if backend != "reference":
        assert error[0] < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_standardised_logits_have_no_gradient(backend, device, dtype):
    """They are ±1/√2 whatever the logits were; beside masked classes too. Rounding left some."""
    student, teacher = rows(device, dtype, (50, 2))
    _, *grads = gradient(lambda s, t: af.standardised_kl_div(s, t, reduction="sum"), student, teacher)
    assert not any(grad.any() for grad in grads)
    wide = [F.pad(x, (1, 2), value=-INF) for x in (student, teacher)]
    _, grad = gradient(lambda s: af.standardised_kl_div(s, wide[1], reduction="sum"), wide[0])
    assert not grad.any()


# ---- numbers ---------------------------------------------------------------------------------------------------------

NUMBERS = {
    "np.float32": np.float32,
    "np.float64": np.float64,
    "np.int64": lambda x: np.int64(int(x)),
    "int": int,
    "tensor": torch.tensor,
    "int tensor": lambda x: torch.tensor(int(x)),
    "fp64 tensor": lambda x: torch.tensor(x, dtype=torch.float64),
}


@pytest.mark.parametrize("make", NUMBERS.values(), ids=NUMBERS)
def test_numbers_are_numbers(make):
    """NumPy's scalars, which come out of a sweep over np.linspace, and tensors of no dimensions on the CPU."""
    student, teacher = rows()
    two = make(2.0)
    for loss in ROW_LOSSES.values():
        assert torch.equal(loss(student, teacher, two, weight=two), loss(student, teacher, 2.0, weight=2.0))
    whole = isinstance(two, (int, np.integer)) or (isinstance(two, torch.Tensor) and not two.is_floating_point())
    expected = af.distillation_loss(student, teacher, LABELS, temperature=2.0, ce_weight=2.0, kl_weight=2.0)
    more = {"ignore_index": make(-100.0)} if whole else {}
    found = af.distillation_loss(student, teacher, LABELS, temperature=two, ce_weight=two, kl_weight=two, **more)
    assert all(map(torch.equal, found, expected))
    assert torch.equal(
        af.dkd_loss(student, teacher, LABELS, target_weight=two, other_weight=two),
        af.dkd_loss(student, teacher, LABELS, target_weight=2.0, other_weight=2.0),
    )
    expected = af.triplet_margin_loss(student, PAIRS, margin=2.0, mining="topk", k=2)
    k = two if whole else 2
    assert torch.equal(af.triplet_margin_loss(student, PAIRS, margin=two, mining="topk", k=k), expected)
    assert torch.equal(af.segment_mse([student], [teacher], [two]), af.segment_mse([student], [teacher], [2.0]))
    assert torch.equal(af.KLDivLoss(two)(student, teacher), af.kl_div(student, teacher, 2.0))
    assert torch.equal(af.RKDLoss(two, two)(student, teacher), af.RKDLoss(2.0, 2.0)(student, teacher))


def test_a_number_that_changes_in_its_tensor():
    """Its value is read at every call: the checked numbers of earlier ones are remembered by value."""
    student, teacher = rows()
    temperature, beta = torch.tensor(2.0), torch.tensor(0.5)
    for t, b in ((2.0, 0.5), (5.0, 0.25)):
        temperature.fill_(t)
        beta.fill_(b)
        found = af.kl_div(student, teacher, temperature, divergence="js", beta=beta)
        assert torch.equal(found, af.kl_div(student, teacher, t, divergence="js", beta=b))


@pytest.mark.parametrize(
    ("beta", "words"),
    [
        (torch.tensor([0.5]), "beta is a Tensor of shape (1,)"),
        (torch.tensor(0.5, requires_grad=True), "beta is a Tensor of shape () on cpu that requires grad"),
        (torch.tensor(0.5, device="meta"), "beta is a Tensor of shape () on meta"),
        (torch.tensor(True), "beta is a bool"),
        (np.bool_(True), "beta is a bool"),
        (True, "beta is a bool"),
        ("0.5", "beta is a str"),
        (0.5j, "beta is a complex"),
    ],
    ids=str,
)
def test_what_is_no_number_is_named(beta, words):
    """Reading some tensors as a number would wait for a device, or lose a gradient without a word."""
    with pytest.raises(TypeError) as caught:
        af.kl_div(*rows(), divergence="js", beta=beta)
    assert str(caught.value).startswith(words)


@by_loss
def test_shapes_on_meta_tensors(loss):
    """Tensors without values, with which trainers find shapes; `rkd_angle_loss` raised."""
    if loss.startswith("triplet"):
        pytest.skip("labels of the test are on the CPU")
    student, teacher = (x.to("meta").requires_grad_() for x in rows())
    value = LOSSES[loss](student, teacher)
    assert (value.shape, value.device.type) == ((), "meta")
    value.backward()
    assert student.grad.shape == student.shape


# ---- dim, temperatures -----------------------------------------------------------------------------------------------


@by_row_loss
@pytest.mark.parametrize(("shape", "dim"), [((2, 5, 3, 4), 1), ((5, 6), 0), ((2, 3, 5), -1), ((2, 5, 3), -2)])
def test_classes_in_any_dimension(backend, device, loss, shape, dim):
    """[B, K, H, W] with dim=1, as the losses of dense prediction have it; W was read as the classes."""
    call = {
        "dkd_loss": lambda s, t, **o: af.dkd_loss(s, t, torch.zeros_like(s.select(o.get("dim", -1), 0)).long(), **o)
    }.get(loss, ROW_LOSSES[loss])
    student, teacher = rows(device, shape=shape)
    for reduction in ("none", "mean", "batchmean"):
        last = [x.movedim(dim, -1) for x in (student, teacher)]
        expected = gradient(lambda s: call(s, last[1], reduction=reduction).sum(), last[0])  # noqa: B023
        found = gradient(lambda s: call(s, teacher, reduction=reduction, dim=dim).sum(), student)  # noqa: B023
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1], expected[1].movedim(-1, dim))
    assert call(student, teacher, reduction="none", dim=dim).shape == last[0].shape[:-1]


def test_distillation_of_dense_predictions(backend, device):
    student, teacher = rows(device, shape=(2, 5, 3, 4))
    labels = torch.arange(24, device=device).view(2, 3, 4) % 5
    found = af.distillation_loss(student, teacher, labels, dim=1, ce_weight=1.0)
    torch.testing.assert_close(found.ce, F.cross_entropy(student, labels))


@pytest.mark.parametrize(("dim", "error"), [(2, ValueError), (-3, ValueError), (0.5, TypeError), (True, TypeError)])
def test_bad_dim_is_named(dim, error):
    with pytest.raises(error, match=r"^dim"):
        af.kl_div(*rows(), dim=dim)


TEMPERATURE_LOSSES = {
    **ROW_LOSSES,
    "distillation_loss": lambda s, t, temperature, **o: (
        af.distillation_loss(s, t, LABELS.to(s.device), temperature=temperature, **o).total
    ),
}


@pytest.mark.parametrize("loss", TEMPERATURE_LOSSES)
@pytest.mark.parametrize("one_a_row", [False, True])
def test_temperature_learns(loss, one_a_row):
    """A tensor [] or one a row: each row's loss at its temperature, and the derivative by finite differences.

    Where classes are masked out too, whose −inf / T has the derivative NaN.
    """
    call = TEMPERATURE_LOSSES[loss]
    student, teacher = rows(dtype=torch.float64)
    student[:, 3], teacher[:, 3] = -INF, -INF
    if loss in ("dkd_loss", "distillation_loss"):
        student[3, 3] = teacher[3, 3] = 0.5  # the labelled one
    temperature = torch.linspace(1.0, 3.0, 6, dtype=torch.float64) if one_a_row else torch.tensor(2.0).double()
    temperature.requires_grad_()
    if loss != "distillation_loss":
        found = call(student, teacher, temperature, reduction="none")
        for i, t in enumerate(temperature.detach().expand(6).tolist()):
            assert found[i].item() == pytest.approx(call(student, teacher, t, reduction="none")[i].item(), rel=1e-12)
    assert torch.autograd.gradcheck(lambda t: call(student, teacher, t), (temperature,))
    finite = rows(dtype=torch.float64)
    for x in finite:
        x.requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t, tau: call(s, t, tau), (*finite, temperature))


def test_bad_temperatures_are_named():
    student, teacher = rows()
    for temperature, error, words in (
        (torch.ones(5), ValueError, "temperature.shape=(5,)"),
        (torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0, 1.0]), ValueError, "temperature: must be above 0 everywhere"),
        (torch.ones(6, dtype=torch.bool), TypeError, "temperature.dtype=torch.bool"),
        (torch.tensor(0.0), ValueError, "temperature=0.0"),
        (torch.tensor(NAN), ValueError, "temperature=nan"),
    ):
        with pytest.raises(error) as caught:
            af.kl_div(student, teacher, temperature)
        assert str(caught.value).startswith(words)
    with backends.backend("cpu"), pytest.raises(RuntimeError, match="a temperature that is a tensor"):
        af.kl_div(student, teacher, torch.ones(6))


def test_a_learnt_temperature_of_a_module():
    module = af.KLDivLoss(torch.nn.Parameter(torch.tensor(2.0)))
    module(*rows()).backward()
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    assert module.temperature.grad.isfinite()
    assert StandardisedKLLoss(torch.nn.Parameter(torch.tensor(2.0)))(*rows()).requires_grad


def test_the_tuple_has_a_name_of_its_own():
    from amkd_fast.losses import DistillationTerms
    from amkd_fast.ops import kl

    assert isinstance(af.distillation_loss(*rows(), LABELS), DistillationTerms)
    assert kl.DistillationLoss is DistillationTerms  # its former name
    assert af.DistillationLoss is not DistillationTerms  # the module
