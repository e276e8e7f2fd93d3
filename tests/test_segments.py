"""What is special to errors of many pairs of tensors: weights, lists, layouts, gradients that are made ahead."""

import math

import pytest
import torch
from cases.operation import relative_error
from torch.nn import functional as F

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.losses import SegmentMSELoss
from amkd_fast.ops.segments import reference

OPERATION = "segments"
SHAPES = ((4, 3, 8, 8), (2, 5, 7), (6, 10), (33, 1000), (), (1,), (3, 16, 9, 11))
INF = math.inf


def pairs(shapes=SHAPES, dtype=torch.float32, device="cpu", seed=0):
    """Students and teachers, drawn in fp64 and rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(2, *shape, generator=generator, dtype=torch.float64) for shape in shapes]
    student, teacher = zip(*(pair.to(dtype).to(device).unbind() for pair in drawn), strict=True)
    return list(student), list(teacher)


def weights_of(shapes=SHAPES):
    return [0.25 + 0.5 * i for i in range(len(shapes))]


def loss_and_grads(student, teacher, weights=None, upstream=1.0):
    leaves = [segment.detach().requires_grad_() for segment in student]
    loss = af.segment_mse(leaves, teacher, weights)
    return loss.detach(), torch.autograd.grad(loss, leaves, torch.full_like(loss, upstream))


def test_gradients_of_fp16_do_not_vanish_under_a_loss_scale(backend, device):
    student, teacher = pairs([(64, 32, 32)], torch.float16)
    exact = 2.0**16 * 2 * (student[0].double() - teacher[0].double()) / student[0].numel()
    _, (grad,) = loss_and_grads([student[0].to(device)], [teacher[0].to(device)], upstream=2.0**16)
    assert relative_error(grad, exact) < 1e-3


def test_is_the_weighted_sum_of_mse_losses(backend, device):
    student, teacher = pairs(dtype=torch.float64, device=device)
    weights = weights_of()
    means = [F.mse_loss(s, t) for s, t in zip(student, teacher, strict=True)]
    for given, want in (
        (None, sum(means)),
        (weights, sum(w * mean for w, mean in zip(weights, means, strict=True))),
        (torch.tensor(weights, device=device), sum(w * mean for w, mean in zip(weights, means, strict=True))),
        (tuple(-w for w in weights), -sum(w * mean for w, mean in zip(weights, means, strict=True))),
    ):
        torch.testing.assert_close(af.segment_mse(student, teacher, given), want, rtol=1e-13, atol=0)
    assert backends.last("segments") == backend


def test_no_segment_and_no_element(backend, device):
    assert af.segment_mse([], []).item() == 0
    assert af.segment_mse([], []).dtype == torch.float32
    student, teacher = pairs([(0, 3), (2, 4), (5, 0)], device=device)
    loss, grads = loss_and_grads(student, teacher, [1.0, 2.0, 3.0])
    torch.testing.assert_close(loss, 2 * F.mse_loss(student[1], teacher[1]))
    assert [grad.shape for grad in grads] == [segment.shape for segment in student]
    loss, grads = loss_and_grads(student[:1], teacher[:1])
    assert loss == 0
    weights = torch.ones(3, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(af.segment_mse(student, teacher, weights), weights)
    assert grad[0] == grad[2] == 0
    assert grad[1] > 0


def test_hundreds_of_segments(backend, device):
    count = 40 if backends.INTERPRETING else 700
    student, teacher = pairs([(i % 7, 1 + i % 5) for i in range(count)], device=device)
    weights = [1.0 + i for i in range(count)]
    loss, grads = loss_and_grads(student, teacher, weights)
    wide = [[segment.double() for segment in side] for side in (student, teacher)]
    exact = reference.segment_mse(*wide, torch.tensor(weights, dtype=torch.float64, device=device))
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    for w, s, t, grad in zip(weights, student, teacher, grads, strict=True):
        torch.testing.assert_close(grad, 2 * w * (s - t) / max(s.numel(), 1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["between segments", "between the sides"])
def test_dtypes_may_differ(backend, device, kind):
    student, teacher = pairs([(3, 40)] * 4, device=device)
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    student = [segment.to(dtype) for segment, dtype in zip(student, dtypes, strict=True)]
    others = dtypes if kind == "between segments" else dtypes[1:] + dtypes[:1]
    teacher = [segment.to(dtype) for segment, dtype in zip(teacher, others, strict=True)]
    for part in (slice(0, 4), slice(0, 2)):
        loss, grads = loss_and_grads(student[part], teacher[part])
        exact = sum(F.mse_loss(s.double(), t.double()) for s, t in zip(student[part], teacher[part], strict=True))
        wide = any(segment.dtype == torch.float64 for segment in student[part] + teacher[part])
        assert loss.dtype == (torch.float64 if wide else torch.float32)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
        for s, t, grad in zip(student[part], teacher[part], grads, strict=True):
            assert grad.dtype == s.dtype
            exact = 2 * (s.double() - t.double()) / s.numel()
            assert relative_error(grad, exact.cpu()) < {2: 4e-3, 4: 1e-6, 8: 1e-6}[s.dtype.itemsize]


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    "sliced": lambda x: F.pad(x, (3, 2))[..., 3:-2],
    "every_other": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
    "shifted": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("of_teacher", LAYOUTS)
@pytest.mark.parametrize("of_student", LAYOUTS)
def test_any_strides(backend, device, of_student, of_teacher):
    student, teacher = (side[0] for side in pairs([(4, 6, 5, 3)], device=device))
    student, teacher = LAYOUTS[of_student](student), LAYOUTS[of_teacher](teacher)
    want = loss_and_grads([student.contiguous()], [teacher.contiguous()])
    loss, (grad,) = loss_and_grads([student], [teacher])
    torch.testing.assert_close(loss, want[0])
    torch.testing.assert_close(grad, want[1][0])
    if of_student in ("channels_last", "transposed"):
        assert grad.stride() == student.stride()


def test_bad_number_spoils_no_gradient_but_its_own(backend, device):
    for bad in (math.nan, INF, -INF):
        student, teacher = pairs([(40, 30), (7,)], device=device)
        clean = loss_and_grads(student, teacher)[1]
        student[0][3, 4] = bad
        loss, grads = loss_and_grads(student, teacher)
        assert not torch.isfinite(loss)
        assert not torch.isfinite(grads[0][3, 4])
        kept = torch.ones(40, 30, dtype=torch.bool, device=device)
        kept[3, 4] = False
        assert torch.equal(grads[0][kept], clean[0][kept])
        assert torch.equal(grads[1], clean[1])


def test_the_gradients_of_the_first_pass_belong_to_the_caller(backend, device):
    student, teacher = pairs(device=device)
    leaves = [segment.requires_grad_() for segment in student]
    loss = af.segment_mse(leaves, teacher)
    for grad in torch.autograd.grad(loss, leaves, retain_graph=True):
        grad.fill_(math.nan)
    loss.backward()
    for leaf, want in zip(leaves, loss_and_grads(student, teacher)[1], strict=True):
        torch.testing.assert_close(leaf.grad, want, rtol=1e-6, atol=1e-9)


def test_a_gradient_is_kept_without_a_copy(backend, device):
    if backend == "reference":
        pytest.skip("the reference is plain autograd")
    student, teacher = pairs([(500, 300)], device=device)
    leaf = student[0].requires_grad_()
    loss = af.segment_mse([leaf], teacher)
    place = loss.grad_fn.grads[0].data_ptr()
    loss.backward()
    assert leaf.grad.data_ptr() == place
    assert not hasattr(loss.grad_fn, "grads")


def test_nothing_is_made_ahead_that_nobody_wants(backend, device):
    if backend == "reference":
        pytest.skip("the reference is plain autograd")
    student, teacher = pairs([(5, 3)], device=device)
    with torch.no_grad():
        assert af.segment_mse([student[0].requires_grad_()], teacher).grad_fn is None
    loss = af.segment_mse([student[0].detach()], [teacher[0].requires_grad_()])
    assert not hasattr(loss.grad_fn, "grads")


def test_gradients_meet_others(backend, device):
    """One tensor in two segments, and in another loss."""
    (tensor,), (teacher,) = pairs([(40, 30)], device=device)
    leaf = tensor.requires_grad_()
    hidden = leaf * 2
    (af.segment_mse([hidden, hidden], [teacher, teacher], [1.0, 3.0]) + hidden.sum()).backward()
    want = 2 * (4 * 2 * (2 * leaf.detach() - teacher) / leaf.numel() + 1)
    torch.testing.assert_close(leaf.grad, want)


def test_module_without_weights_and_in_words():
    student, teacher = pairs()
    assert torch.equal(SegmentMSELoss()(student, teacher), af.segment_mse(student, teacher))
    assert "weights=[0.5]" in repr(SegmentMSELoss([0.5]))
