"""What is special to relational distillation: close pairs, rows that coincide, too few rows, weights of the parts."""

from __future__ import annotations

import math

import pytest
import torch
from cases import relations
from cases.operation import relative_error

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.losses import RKDLoss

OPERATION = "relations"
SHAPES = ((2, 4, 4), (5, 3, 2), *(((19, 10, 7),) if backends.INTERPRETING else ((37, 17, 40), (70, 8, 130))))
LOSSES = {"distance": af.rkd_distance_loss, "angle": af.rkd_angle_loss}
EAGER = {"distance": relations.eager_distance, "angle": relations.eager_angle}
by_loss = pytest.mark.parametrize("name", LOSSES)


def draw(rows, width, teacher_width, dtype=torch.float32, seed=0):
    return list(relations.draw((rows, width, teacher_width), dtype, seed).values())


def clusters(dtype, spread, offset=0.0):
    """Six tight clusters of rows, and two pairs that are closer still."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(6, 1, 12, generator=generator, dtype=torch.float64)
    pair = [
        (offset + centres + spread * torch.randn(6, 4, 12, generator=generator, dtype=torch.float64)).flatten(0, 1)
        for _ in range(2)
    ]
    for x in pair:
        x[1], x[9] = x[0] + 0.1 * spread, x[8] - 0.05 * spread
    return [x.to(dtype) for x in pair]


def value_and_grad(loss, student, teacher):
    student = student.detach().clone().requires_grad_()
    value = loss(student, teacher)
    value.backward()
    return value.detach(), student.grad


def check_errors(name, student, teacher, device):
    truth = value_and_grad(EAGER[name], student.double(), teacher.double())
    rival = value_and_grad(EAGER[name], student, teacher)
    ours = value_and_grad(LOSSES[name], student.to(device), teacher.to(device))
    assert ours[0].dtype == (torch.float64 if student.dtype == torch.float64 else torch.float32)
    assert ours[1].dtype == student.dtype
    # In fp64 the truth is no better than its rivals; one rounding of the result is the least that fp32 can show.
    floor = 1e-12 if student.dtype == torch.float64 else 1e-7
    for value, other, exact, factor in zip(ours, rival, truth, (2.0, 3.0), strict=True):
        assert relative_error(value, exact) <= max(factor * relative_error(other, exact), floor)


@by_loss
@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_clusters_close_pairs_and_offsets_cost_no_accuracy(backend, device, name, spread, offset):
    if offset and spread < 1e-3:
        pytest.skip("fp32 has no such clusters there")
    check_errors(name, *clusters(torch.float32, spread, offset), device)


@pytest.mark.parametrize("size", [1e-25, 1e-17, 1.0, 1e17, 1e25])
def test_distances_of_any_size_are_relative(backend, device, size):
    """Squares of all but the middle one leave fp32, or lose digits in it."""
    student, teacher = draw(37, 17, 40)
    student[3] = student[5]
    truth = value_and_grad(EAGER["distance"], size * student.double(), teacher.double())
    value, grad = value_and_grad(LOSSES["distance"], (size * student).to(device), teacher.to(device))
    assert relative_error(value, truth[0]) < 1e-6
    assert relative_error(size * grad.double(), size * truth[1]) < 1e-5


@by_loss
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_reference(backend, device, name, shape):
    student, teacher = draw(*shape, torch.float64)
    with backends.backend("reference"):
        truth = value_and_grad(LOSSES[name], student, teacher)
    ours = value_and_grad(LOSSES[name], student.to(device), teacher.to(device))
    for value, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(value.cpu(), exact, rtol=1e-11, atol=1e-15)


@by_loss
@pytest.mark.parametrize("side", [0, 1])
def test_rows_that_coincide(backend, device, name, side):
    """Their distance is 0, angles with them are right ones, and neither has a gradient."""
    pair = draw(21, 6, 5, torch.float64)
    pair[side][4] = pair[side][17] = pair[side][2]
    with backends.backend("reference"):
        truth = value_and_grad(LOSSES[name], *pair)
    torch.testing.assert_close(truth[0], EAGER[name](*pair))
    ours = value_and_grad(LOSSES[name], *(x.to(device) for x in pair))
    for value, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(value.cpu(), exact, rtol=1e-11, atol=1e-15)


@by_loss
def test_all_rows_in_one_point(backend, device, name):
    point, teacher = torch.full((9, 4), 0.3, device=device), draw(9, 3, 4)[1].to(device)
    for student, other in ((point, teacher), (point, point)):
        value, grad = value_and_grad(LOSSES[name], student, other)
        assert torch.isfinite(value)
        assert (value > 0) == (other is teacher)
        assert not grad.any()
    value, grad = value_and_grad(LOSSES[name], teacher, point)
    assert torch.isfinite(value)
    assert torch.isfinite(grad).all()


@by_loss
@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_for_a_relation(backend, device, name, rows):
    value, grad = value_and_grad(LOSSES[name], torch.ones(rows, 3, device=device), torch.ones(rows, 2, device=device))
    assert value == 0
    assert grad.shape == (rows, 3)
    assert not grad.any()


@by_loss
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_bad_rows_make_the_loss_nan(backend, device, name, bad, side):
    pair = draw(19, 4, 5)
    pair[side][3, 1] = bad
    assert value_and_grad(LOSSES[name], *(x.to(device) for x in pair))[0].isnan()


def test_without_a_gradient_none_is_computed(backend, device):
    student, teacher = (x.to(device) for x in draw(12, 5, 7))
    for name, loss in LOSSES.items():
        want = value_and_grad(LOSSES[name], student, teacher)[0]
        assert torch.equal(loss(student, teacher), want)
        with torch.no_grad():
            assert torch.equal(loss(student.clone().requires_grad_(), teacher), want)


def test_module_is_the_weighted_sum(backend, device):
    student, teacher = (x.to(device) for x in draw(23, 5, 7, torch.float64))
    parts = [value_and_grad(loss, student, teacher) for loss in LOSSES.values()]
    for weights in ((25.0, 50.0), (0.0, 2.0), (3.0, 0.0), (0.0, 0.0)):
        value, grad = value_and_grad(RKDLoss(*weights), student, teacher)
        torch.testing.assert_close(value, sum(w * part[0] for w, part in zip(weights, parts, strict=True)))
        torch.testing.assert_close(grad, sum(w * part[1] for w, part in zip(weights, parts, strict=True)))
    assert str(RKDLoss()) == "RKDLoss(distance_weight=25.0, angle_weight=50.0)"
    with pytest.raises(ValueError, match="angle_weight=-1"):
        RKDLoss(angle_weight=-1.0)


def test_no_more_than_pairs_are_held(backend, device):
    if backend == "reference":
        pytest.skip("the reference is plain autograd")
    student, teacher = (x.to(device) for x in draw(24, 5, 7))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        af.rkd_angle_loss(student.requires_grad_(), teacher)
    assert sum(x.numel() for x in saved) <= 2 * student.numel() + teacher.numel()
