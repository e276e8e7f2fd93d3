"""Relational distillation, every backend against the public form of it in eager PyTorch, in fp64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from oracles_kl import relative_error

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.losses import RKDLoss

OPERATION = "relations"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Rows and widths: fewer than a vector, several tiles with a rest, several chunks; a pair.
SHAPES = ((5, 3, 2), (2, 4, 4), *(((19, 10, 7),) if backends.INTERPRETING else ((37, 17, 40), (70, 8, 130))))
LOSSES = {"distance": af.rkd_distance_loss, "angle": af.rkd_angle_loss}
by_loss = pytest.mark.parametrize("name", LOSSES)


def eager_distance(student, teacher):
    def relative(x):
        d = (x[:, None] - x).square().sum(-1)
        d = torch.where(d > 0, torch.where(d > 0, d, 1.0).sqrt(), 0.0)
        return d / d[d > 0].mean()

    return F.smooth_l1_loss(relative(student), relative(teacher))


def eager_angle(student, teacher):
    def cosines(x):
        eps = 1e-12 if x.dtype != torch.float16 else 1e-6  # fp16 takes 1e-12 for 0
        unit = F.normalize(x - x[:, None], dim=2, eps=eps)  # [B, B, D]
        return torch.bmm(unit, unit.mT)

    return F.smooth_l1_loss(cosines(student), cosines(teacher))


EAGER = {"distance": eager_distance, "angle": eager_angle}


def draw(rows, width, teacher_width, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pair = (torch.randn(rows, n, generator=generator, dtype=torch.float64) for n in (width, teacher_width))
    return [x.to(dtype) for x in pair]


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
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_error_is_within_that_of_eager(backend, device, name, dtype, shape):
    check_errors(name, *draw(*shape, dtype), device)
    assert backends.last("relations") == backend


@by_loss
@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_clusters_close_pairs_and_offsets_cost_no_accuracy(backend, device, name, spread, offset):
    if offset and spread < 1e-3:
        pytest.skip("fp32 has no such clusters there")
    check_errors(name, *clusters(torch.float32, spread, offset), device)


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
def test_gradcheck(backend, device, name):
    student, teacher = (x.to(device).requires_grad_() for x in draw(6, 3, 5, torch.float64))
    assert torch.autograd.gradcheck(LOSSES[name], (student, teacher), fast_mode=backends.INTERPRETING)


@by_loss
def test_double_backward(backend, device, name):
    student, teacher = (x.to(device).requires_grad_() for x in draw(4, 3, 2, torch.float64))
    assert torch.autograd.gradgradcheck(LOSSES[name], (student, teacher), fast_mode=backends.INTERPRETING)


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


@by_loss
def test_any_strides(backend, device, name):
    student, teacher = (x.to(device) for x in draw(20, 6, 7))
    want = value_and_grad(LOSSES[name], student, teacher)
    for make in (
        lambda x: x.t().contiguous().t(),
        lambda x: F.pad(x, (3, 2))[:, 3:-2],
        lambda x: x.repeat_interleave(2, dim=0)[::2],
        lambda x: x.repeat_interleave(3, dim=1)[:, ::3],
    ):
        leaf = make(student).detach().requires_grad_()
        value = LOSSES[name](leaf, make(teacher))
        (grad,) = torch.autograd.grad(value, leaf)
        assert torch.equal(value, want[0])
        assert torch.equal(grad, want[1])


@by_loss
def test_backward_again_and_its_factor(backend, device, name):
    student, teacher = (x.to(device) for x in draw(12, 5, 5))
    student.requires_grad_()
    loss = LOSSES[name](student, teacher)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (second,) = torch.autograd.grad(loss, student, 3.0 * torch.ones_like(loss))
    torch.testing.assert_close(second, 3.0 * first)


@by_loss
def test_gradient_of_the_teacher(backend, device, name):
    student, teacher = (x.to(device) for x in draw(12, 5, 7, torch.float64))
    _, want = value_and_grad(EAGER[name], teacher, student)
    teacher.requires_grad_()
    LOSSES[name](student, teacher).backward()
    torch.testing.assert_close(teacher.grad, want, rtol=1e-9, atol=1e-14)


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


def test_same_bits_on_a_second_run_and_on_other_threads(backend, device):
    threads = torch.get_num_threads()
    student, teacher = (x.to(device) for x in draw(18 if backends.INTERPRETING else 150, 20, 9))
    runs = []
    try:
        for count in (threads, threads, 1, 3):
            torch.set_num_threads(count)
            runs.append([part for loss in LOSSES.values() for part in value_and_grad(loss, student, teacher)])
    finally:
        torch.set_num_threads(threads)
    if backend == "reference":  # torch's own sums depend on the number of threads
        runs = runs[:2]
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_every_element_of_the_outputs_is_written(backend, device):
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN
    try:
        assert torch.empty_strided((4,), (1,), device=device).isnan().all()
        for shape in SHAPES:
            student, teacher = (x.to(device) for x in draw(*shape))
            for loss in LOSSES.values():
                value, grad = value_and_grad(loss, student, teacher)
                assert torch.isfinite(value)
                assert torch.isfinite(grad).all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_more_than_pairs_are_held(backend, device):
    if backend == "reference":
        pytest.skip("the reference is plain autograd")
    student, teacher = (x.to(device) for x in draw(24, 5, 7))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        af.rkd_angle_loss(student.requires_grad_(), teacher)
    assert sum(x.numel() for x in saved) <= 2 * student.numel() + teacher.numel()


def test_mixed_dtypes_and_autocast(backend, device):
    student, teacher = (x.to(device) for x in draw(12, 5, 7, torch.bfloat16))
    leaf = student.clone().requires_grad_()
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = af.rkd_angle_loss(leaf, teacher.float())
    loss.backward()
    assert loss.dtype == torch.float32
    assert leaf.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.detach(), af.rkd_angle_loss(student.float(), teacher.float()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(backend, device, dynamic):
    if backend == "reference" and dynamic:
        pytest.skip("backend reference: goes through the rows in Python, whose number has to be known")
    student, teacher = (x.to(device) for x in draw(8, 5, 7))

    def objective(s, t):
        return af.rkd_angle_loss(s * 1.5, t) + af.rkd_distance_loss(s, t)

    torch._dynamo.reset()
    compiled = torch.compile(objective, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for got, want in zip(
        value_and_grad(compiled, student, teacher), value_and_grad(objective, student, teacher), strict=True
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.skipif(backends.INTERPRETING, reason="opcheck runs each operator a dozen times")
def test_opcheck(backend, device):
    if backend == "reference":
        pytest.skip("the reference has no operator")
    operator = getattr(torch.ops.amkd_fast, f"relations_loss{'_triton' if backend == 'triton' else ''}").default
    student, teacher = (x.to(device) for x in draw(6, 5, 7))
    for weights in ((2.0, 3.0, True), (0.0, 1.0, False)):
        torch.library.opcheck(operator, (student, teacher, *weights), test_utils=("test_schema", "test_faketensor"))


S = torch.zeros(3, 4)
REFUSED = {
    "student is a list": (TypeError, lambda loss: loss([0.0], S)),
    "student.dtype=torch.int64": (TypeError, lambda loss: loss(S.long(), S)),
    "teacher.dtype=torch.int64": (TypeError, lambda loss: loss(S, S.long())),
    "student.shape=(3, 4, 1)": (ValueError, lambda loss: loss(S[..., None], S)),
    "student.shape=(3, 0)": (ValueError, lambda loss: loss(S[:, :0], S)),
    "teacher.shape=(2, 4)": (ValueError, lambda loss: loss(S, S[:2])),
    "teacher.shape=(3, 0)": (ValueError, lambda loss: loss(S, S[:, :0])),
    "teacher.device=meta": (ValueError, lambda loss: loss(S, S.to("meta"))),
}


@by_loss
@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(name, message):
    error, call = REFUSED[message]
    with pytest.raises(error) as caught:
        call(LOSSES[name])
    assert str(caught.value).startswith(message)
