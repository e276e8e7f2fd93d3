"""The gradient that is written over the student's logits: the same bits, and an error for whoever needs the logits."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.losses import DistillationLoss, KLDivLoss

SHAPES = ((3, 1), (5, 7), (4, 33)) if backends.INTERPRETING else ((3, 1), (5, 7), (4, 33), (6, 1000), (2, 70_001))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def distillation(student, teacher, **options):
    labels = torch.arange(student.shape[0], device=student.device) % student.shape[-1]
    labels[-1] = -100
    return af.distillation_loss(student, teacher, labels, **options).total


LOSSES = {
    "forward": partial(af.kl_div, temperature=2.0),
    "reverse": partial(af.kl_div, divergence="reverse"),
    "js": partial(af.kl_div, divergence="js"),
    "soft_cross_entropy": af.soft_cross_entropy,
    "distillation_loss": distillation,
}


def draw(shape, dtype, device):
    draws = torch.Generator().manual_seed(0)
    return [(3.0 * torch.randn(shape, generator=draws)).to(device, dtype) for _ in range(2)]


def run(loss, student, teacher, **options):
    """The gradient of what logits are made of, and whether it came in the logits' memory."""
    leaf, places = student.clone().requires_grad_(), []
    logits = leaf * 1.0
    logits.register_hook(lambda grad: places.append(grad.data_ptr() == logits.data_ptr()))
    loss(logits, teacher, **options).backward()
    return leaf.grad, places == [True]


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_same_bits_in_the_memory_of_the_logits(backend, device, loss, shape, dtype):
    student, teacher = draw(shape, dtype, device)
    expected, _ = run(LOSSES[loss], student, teacher)
    grad, in_place = run(LOSSES[loss], student, teacher, inplace_backward=True)
    assert torch.equal(grad, expected)
    assert in_place == (backend != "reference")


@pytest.mark.kernels
def test_leading_dimensions_strides_masks_and_weights(backend, device):
    student, teacher = draw((2, 3, 9), torch.float32, device)
    mask = torch.tensor([[True, False, True], [True, True, False]], device=device)
    for given in (student, student[:, 1:], student.transpose(0, 2)):
        options = {"mask": mask} if given is student else {}
        call = partial(af.kl_div, **options)
        other = teacher.as_strided(given.shape, given.stride())
        assert torch.equal(run(call, given, other)[0], run(call, given, other, inplace_backward=True)[0])
    for name in ("weight", "kl_weight"):  # whose gradients are made of the logits, too
        grads = []
        for inplace in (False, True):
            rows = torch.rand(4, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
            logits = draw((4, 5), torch.float32, device)
            call = af.kl_div if name == "weight" else distillation
            grad, _ = run(call, *logits, inplace_backward=inplace, **{name: rows})
            grads.append((grad, rows.grad))
        assert all(torch.equal(one, two) for one, two in zip(*grads, strict=True))


def test_teacher_in_the_same_memory(backend, device):
    student, _ = draw((4, 33), torch.float32, device)
    shifted = {}
    for inplace in (False, True):
        leaf = student.clone().requires_grad_()
        logits = leaf * 1.0
        af.kl_div(logits[:2], logits.detach()[1:3], inplace_backward=inplace).backward()
        shifted[inplace] = leaf.grad
    assert torch.equal(shifted[True], shifted[False])


def test_who_needs_the_logits_is_told(backend, device):
    if backend == "reference":
        pytest.skip("the reference writes over nothing")
    student, teacher = draw((4, 5), torch.float32, device)
    logits = student.requires_grad_() * 1.0
    loss = af.kl_div(logits, teacher, inplace_backward=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    logits = student * 1.0
    squares = logits.square().sum()
    af.kl_div(logits, teacher, inplace_backward=True).backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.backward()


def test_leaves_are_refused(backend, device):
    student, teacher = draw((4, 6), torch.float32, device)
    student.requires_grad_()
    for given in (student, student.view(4, 6), student[1:]):
        with pytest.raises(ValueError, match=r"inplace_backward=True: .* leaf"):
            af.kl_div(given, teacher[-given.shape[0] :], inplace_backward=True)
    af.kl_div(student.detach(), teacher, inplace_backward=True)  # has no gradient


def test_a_differentiable_gradient_leaves_the_logits(backend, device):
    student, teacher = draw((4, 5), torch.float64, device)
    leaf = student.requires_grad_()
    found = []
    for inplace in (False, True):
        logits = leaf * 1.0
        (grad,) = torch.autograd.grad(af.kl_div(logits, teacher, inplace_backward=inplace), leaf, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), leaf)[0])
    assert torch.equal(*found)


def test_under_compilation_and_in_modules(backend, device):
    student, teacher = draw((4, 5), torch.float32, device)
    expected, _ = run(af.kl_div, student, teacher)
    torch._dynamo.reset()
    compiled = torch.compile(af.kl_div, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, student, teacher, inplace_backward=True)[0], expected)
    grad, in_place = run(KLDivLoss(inplace_backward=True), student, teacher)
    assert torch.equal(grad, expected)
    assert in_place == (backend != "reference")
    criterion = DistillationLoss(inplace_backward=True)
    assert run(lambda s, t: criterion(s, t).total, student, teacher)[1] == (backend != "reference")
