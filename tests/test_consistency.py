"""What is special to cosine-confidence distillation: its parts, the confidence, what a bad logit spoils."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases.kl import draw_views
from cases.operation import relative_error
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import amkd_fast as af
from amkd_fast import backends

OPERATION = "kl"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INF = math.inf


def logits(shape, dtype=torch.float32, device="cpu", seed=0, **more):
    """Student, teacher, augmented student and teacher."""
    return [x.to(device) for x in draw_views(shape, dtype, seed, **more).values()]


def ours(*tensors):
    return af.consistency_kl(*tensors, scale_by_t2=False).total


def total_and_grads(function, tensors, temperature=2.0):
    """The total, and its gradients in both students."""
    tensors = [x.detach().clone().requires_grad_(i % 2 == 0) for i, x in enumerate(tensors)]
    total = function(*tensors, temperature)
    total.backward()
    return total.detach(), tensors[0].grad, tensors[2].grad


def test_parts(backend, device):
    tensors = logits((6, 9), torch.float64, device)
    tensors[0].requires_grad_()
    loss = af.consistency_kl(*tensors, 3.0)
    confidence = 1 + F.cosine_similarity(tensors[1], tensors[3])
    clean, augmented = (af.kl_div(s, t, 3.0, reduction="none") for s, t in (tensors[:2], tensors[2:]))
    exact = {"rtol": 1e-12, "atol": 0}
    torch.testing.assert_close(loss.confidence, confidence, **exact)
    torch.testing.assert_close(loss.clean, clean.detach().mean(), **exact)
    torch.testing.assert_close(loss.augmented, (confidence * augmented).mean(), **exact)
    torch.testing.assert_close(loss.total, 0.5 * (loss.clean + loss.augmented), check_dtype=False, **exact)
    torch.testing.assert_close(af.consistency_kl(*tensors, 3.0, scale_by_t2=False).total * 9.0, loss.total, **exact)
    assert loss.total.requires_grad
    assert not any(part.requires_grad for part in (loss.clean, loss.augmented, loss.confidence))


def test_teacher_of_zeros_has_cosine_0(backend, device):
    tensors = [x.clone() for x in logits((4, 6), torch.float64, device)]
    tensors[1][0], tensors[3][1], tensors[1][2], tensors[3][2] = 0.0, 0.0, 0.0, 0.0
    for x in tensors:
        x.requires_grad_()
    loss = af.consistency_kl(*tensors)
    assert loss.confidence[:3].tolist() == [1.0, 1.0, 1.0]
    loss.total.backward()
    assert all(torch.isfinite(x.grad).all() for x in tensors)


def test_opposite_views_of_the_teacher_leave_the_clean_one(backend, device):
    student, teacher, augmented, _ = logits((4, 6), torch.float64, device)
    loss = af.consistency_kl(student, teacher, augmented, -teacher)
    assert loss.confidence.abs().max() < 1e-12
    torch.testing.assert_close(loss.total, 0.5 * af.kl_div(student, teacher, 4.0))


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("classes", [9, 5000])
def test_bad_logit_spoils_its_row_and_view_alone(backend, device, value, which, classes):
    tensors = [x.clone() for x in logits((5, classes), device=device)]
    clean = total_and_grads(ours, tensors)
    before = af.consistency_kl(*tensors)
    tensors[which][2, classes // 2] = value
    total, *grads = total_and_grads(ours, tensors)
    after = af.consistency_kl(*tensors)
    others = [0, 1, 3, 4]
    spoilt = [which < 2, which != 0]  # a teacher's clean row takes part in the confidence too
    assert total.isnan()
    assert torch.equal(after.confidence[others], before.confidence[others])
    assert after.confidence[2].isnan() == (which % 2 == 1)
    for grad, other, bad in zip(grads, clean[1:], spoilt, strict=True):
        assert torch.equal(grad[others], other[others])
        assert grad[2].isnan().any() == bad
    assert after.clean.isnan() == spoilt[0]
    assert after.augmented.isnan() == spoilt[1]


@st.composite
def problems(draw):
    rows, classes = draw(st.integers(0, 9)), draw(st.integers(1, 70))
    dtype = draw(st.sampled_from(DTYPES))
    tensors = logits((rows, classes), dtype, seed=draw(st.integers(0, 99)), shift=draw(st.sampled_from([0, 50])))
    masked = torch.tensor(draw(st.lists(st.booleans(), min_size=classes, max_size=classes)), dtype=torch.bool)
    masked[draw(st.integers(0, classes - 1))] = False
    tensors = [x.masked_fill(masked, -INF) for x in tensors]
    which = draw(st.integers(0, 3))
    tensors[which] = tensors[which].t().contiguous().t()
    return tensors, draw(st.sampled_from([0.5, 1.0, 4.0]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(problems())
def test_any_shape_dtype_stride_and_mask(backend, device, problem):
    tensors, temperature = problem
    with backends.backend("reference"):
        truth = total_and_grads(ours, [x.double() for x in tensors], temperature)
    found = total_and_grads(ours, [x.to(device) for x in tensors], temperature)
    dtype = tensors[0].dtype
    step = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    exact = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found[0].double().cpu(), truth[0], rtol=exact, atol=exact)
    for grad, other in zip(found[1:], truth[1:], strict=True):
        torch.testing.assert_close(grad.double().cpu(), other, rtol=step, atol=exact)


@pytest.mark.parametrize("shape", [(1, 4), (3, 1)], ids=str)
def test_small_shapes(backend, device, shape):
    loss = af.consistency_kl(*logits(shape, device=device), 2.0)
    assert loss.confidence.shape == shape[:1]
    assert (loss.total == 0) == (shape[1] == 1)  # no choice


@pytest.mark.parametrize("shape", [(16, 10), (32, 1000)], ids=str)
def test_common_offset_of_1e4_costs_no_accuracy(backend, device, shape):
    tensors = logits(shape, shift=1e4)
    with backends.backend("reference"):
        truth = total_and_grads(ours, [x.double() for x in tensors])
    for value, exact in zip(total_and_grads(ours, [x.to(device) for x in tensors]), truth, strict=True):
        assert relative_error(value, exact) <= 1e-6
