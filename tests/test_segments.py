"""Errors of many pairs of tensors in one launch: against the specification in fp64, layouts, autograd, the rules."""

import math

import pytest
import torch
from torch.nn import functional as F
from traps import NothingWaits

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.losses import SegmentMSELoss
from amkd_fast.ops import segments as family
from amkd_fast.ops.segments import reference

OPERATION = "segments"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# No vector, a vector and a rest, several pieces and tiles, no dimension at all.
SHAPES = ((4, 3, 8, 8), (2, 5, 7), (6, 10), (33, 1000), (), (1,), (3, 16, 9, 11))
INF = math.inf
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


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


def relative_error(value, exact):
    return ((value.cpu().double() - exact).norm() / exact.norm().clamp(min=1e-300)).item()


# ---- accuracy -------------------------------------------------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_error_is_within_that_of_eager(backend, device, dtype, upstream):
    student, teacher = pairs(dtype=dtype)
    weights = weights_of()

    def eager(student, teacher):
        leaves = [segment.detach().requires_grad_() for segment in student]
        loss = sum(w * F.mse_loss(s, t) for w, s, t in zip(weights, leaves, teacher, strict=True))
        return loss.detach(), torch.autograd.grad(loss, leaves, torch.full_like(loss, upstream))

    truth = eager([s.double() for s in student], [t.double() for t in teacher])
    rival = eager(student, teacher)
    ours = loss_and_grads([s.to(device) for s in student], [t.to(device) for t in teacher], weights, upstream)
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # In fp64 the truth is no better than its rivals. The least that fp32 can show is a difference that is rounded and
    # squared, the rounding of its square, and that of the result: four, where one element makes up a segment.
    floor = 1e-14 if dtype == torch.float64 else 4 * 6e-8
    assert relative_error(ours[0], truth[0]) <= max(2 * relative_error(rival[0], truth[0]), floor)
    for grad, other, exact in zip(ours[1], rival[1], truth[1], strict=True):
        assert grad.dtype == dtype
        # Stored, then multiplied by the upstream gradient: two roundings to a half-precision dtype.
        least = floor + (torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0)
        assert relative_error(grad, exact) <= max(3 * relative_error(other, exact), least)


def test_gradients_of_fp16_do_not_vanish_under_a_loss_scale(backend, device):
    student, teacher = pairs([(64, 32, 32)], torch.float16)
    exact = 2.0**16 * 2 * (student[0].double() - teacher[0].double()) / student[0].numel()
    _, (grad,) = loss_and_grads([student[0].to(device)], [teacher[0].to(device)], upstream=2.0**16)
    assert relative_error(grad, exact) < 1e-3


def test_gradcheck(backend, device):
    student, teacher = pairs([(3, 4), (2, 2, 2), (0, 3)], torch.float64, device)
    weights = torch.rand(3, dtype=torch.float64, device=device, requires_grad=True)
    tensors = [segment.requires_grad_() for segment in (*student, *teacher)]
    assert torch.autograd.gradcheck(lambda w, *x: af.segment_mse(x[:3], x[3:], w), (weights, *tensors))


def test_double_backward(backend, device):
    student, teacher = pairs([(3, 4), (5,)], torch.float64, device)
    weights = torch.rand(2, dtype=torch.float64, device=device, requires_grad=True)
    tensors = [segment.requires_grad_() for segment in (*student, *teacher)]
    assert torch.autograd.gradgradcheck(lambda w, *x: af.segment_mse(x[:2], x[2:], w), (weights, *tensors))
    assert torch.autograd.gradgradcheck(lambda *x: af.segment_mse(x[:2], x[2:], [0.5, 2.0]), tensors)


# ---- meaning --------------------------------------------------------------------------------------------------------


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


def test_teachers_and_weights_have_gradients(backend, device):
    student, teacher = pairs(dtype=torch.float64, device=device)
    weights = torch.tensor(weights_of(), dtype=torch.float64, device=device)
    inputs = [segment.requires_grad_() for segment in (weights, *student, *teacher)]
    count = len(student)
    for chosen in (range(len(inputs)), (0,), (2,), (count + 2,), (0, 1, count + 1)):
        leaves = [x.detach().requires_grad_(i in chosen) for i, x in enumerate(inputs)]
        wanted = [leaves[i] for i in chosen]
        got = torch.autograd.grad(af.segment_mse(leaves[1 : count + 1], leaves[count + 1 :], leaves[0]) * 3, wanted)
        truth = reference.segment_mse(leaves[1 : count + 1], leaves[count + 1 :], leaves[0]) * 3
        for grad, want in zip(got, torch.autograd.grad(truth, wanted), strict=True):
            torch.testing.assert_close(grad, want, rtol=1e-12, atol=1e-15)


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


# ---- autograd -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [1.0, 3.0])
def test_second_backward_of_one_graph_gives_the_same(backend, device, first):
    """Whatever has happened to the first one's gradients."""
    student, teacher = pairs(device=device)
    leaves = [segment.requires_grad_() for segment in student]
    loss = af.segment_mse(leaves, teacher, weights_of())
    want = [grad.clone() for grad in torch.autograd.grad(loss, leaves, torch.full_like(loss, first), retain_graph=True)]
    again = torch.autograd.grad(loss, leaves, torch.full_like(loss, first), retain_graph=True)
    for grad in again:
        grad.zero_()
    for grad, expected in zip(torch.autograd.grad(loss, leaves, torch.full_like(loss, first)), want, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-6, atol=1e-9)


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


def test_inputs_stay_as_they_are(backend, device):
    student, teacher = pairs(device=device)
    before = [segment.clone() for segment in (*student, *teacher)]
    loss_and_grads(student, teacher, weights_of(), 3.0)
    assert all(map(torch.equal, before, (*student, *teacher)))


def test_every_element_of_the_outputs_is_written(backend, device):
    student, teacher = pairs(device=device)
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN
    try:
        assert torch.empty_strided((4,), (1,), device=device).isnan().all()
        leaves = [segment.requires_grad_() for segment in student]
        weights = torch.ones(len(student), device=device, requires_grad=True)
        loss = af.segment_mse(leaves, teacher, weights)
        for _ in range(2):
            grads = torch.autograd.grad(loss, [weights, *leaves], retain_graph=True)
            assert all(torch.isfinite(grad).all() for grad in grads)
        assert torch.isfinite(loss)
    finally:
        torch.use_deterministic_algorithms(False)


def test_same_bits_on_a_second_run_and_on_other_threads(backend, device):
    threads = torch.get_num_threads()
    student, teacher = pairs([(100, 1000), (64, 10), (30, 2000)], device=device)
    runs = []
    try:
        for count in (threads, threads, 1):
            torch.set_num_threads(count)
            loss, grads = loss_and_grads(student, teacher, upstream=0.7)
            runs.append((loss, *grads))
    finally:
        torch.set_num_threads(threads)
    if backend == "reference":  # torch's own sums depend on the number of threads
        runs.pop()
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_nothing_waits_for_the_device(backend, device):
    student, teacher = pairs(device=device)
    leaves = [segment.requires_grad_() for segment in student]
    with NothingWaits():
        (af.segment_mse(leaves, teacher, weights_of()) * 0.5).backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(backend, device, dtype):
    layer = torch.nn.Linear(8, 10, device=device)
    images = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.autocast(device.type, dtype=dtype):
        hidden = layer(images)
        loss = af.segment_mse([hidden, hidden.float()], [torch.zeros(4, 10, device=device)] * 2)
    loss.backward()
    assert hidden.dtype == dtype
    assert loss.dtype == torch.float32
    assert torch.isfinite(layer.weight.grad).all()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(backend, device, dynamic):
    student, teacher = pairs([(4, 3, 8, 8), (6, 10)], device=device)
    student[0] = student[0].to(memory_format=torch.channels_last)
    weights = torch.rand(2, device=device)

    def objective(a, b, weights, *teacher):
        loss = af.segment_mse((a * 1.5, b), teacher, weights)
        return loss + 0.5 * af.segment_mse([b], teacher[1:], [2.0])

    results = []
    torch._dynamo.reset()
    # The backend under test is what is compiled; code generation around it is torch's own affair.
    for function in (objective, torch.compile(objective, fullgraph=True, dynamic=dynamic, backend="aot_eager")):
        leaves = [segment.clone().requires_grad_() for segment in (*student, weights)]
        loss = function(*leaves, *teacher)
        loss.backward()
        results.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_operators_keep_the_rules_of_torch(backend, device):
    if backend == "reference":
        pytest.skip("the reference has no operators")
    student, teacher = pairs([(3, 4, 5, 2), (6, 9), (0, 2), (12,)], device=device)
    student[0] = student[0].to(memory_format=torch.channels_last)
    student[1] = student[1].repeat_interleave(2, dim=1)[:, ::2]
    af.segment_mse(student, teacher)  # makes the operators known
    operators, tests = family._OPERATORS[backend], ("test_schema", "test_faketensor")
    factors, weights = [0.5, 1.0, 2.0, 1.0], torch.rand(4, device=device)
    for given, with_grads in ((None, True), (weights, False)):
        torch.library.opcheck(
            operators.forward, (student, teacher, given, factors, with_grads), test_utils=tests
        )  # fmt: skip
        upstream = torch.full((), 0.3, device=device)
        torch.library.opcheck(operators.backward, (upstream, student, teacher, given, factors), test_utils=tests)
        torch.library.opcheck(operators.scale, ([segment.clone() for segment in teacher], upstream), test_utils=tests)


def test_module(backend, device):
    student, teacher = pairs(device=device)
    for weights in (None, weights_of()):
        want = af.segment_mse(student, teacher, weights)
        assert torch.equal(SegmentMSELoss(weights)(student, teacher), want)
    assert "weights=[0.5]" in repr(SegmentMSELoss([0.5]))
    with pytest.raises(ValueError, match="weights=inf"):
        SegmentMSELoss([INF])


# ---- refusals -------------------------------------------------------------------------------------------------------

S = torch.zeros(3, 4)
REFUSED = {
    "student is a Tensor": (TypeError, lambda: af.segment_mse(S, [S])),
    "teacher is a generator": (TypeError, lambda: af.segment_mse([S], (s for s in [S]))),
    "student[1] is a int": (TypeError, lambda: af.segment_mse([S, 3], [S, S])),
    "teacher[0].dtype=torch.int64": (TypeError, lambda: af.segment_mse([S], [S.long()])),
    "teacher has 2 segments": (ValueError, lambda: af.segment_mse([S], [S, S])),
    "teacher[1].shape=(3, 3)": (ValueError, lambda: af.segment_mse([S, S], [S, S[:, :3]])),
    "teacher[0].device=meta": (ValueError, lambda: af.segment_mse([S], [S.to("meta")])),
    "student[1].device=meta": (ValueError, lambda: af.segment_mse([S, S.to("meta")], [S, S])),
    "weights=[1.0]": (ValueError, lambda: af.segment_mse([S, S], [S, S], [1.0])),
    "weights=nan": (ValueError, lambda: af.segment_mse([S], [S], [math.nan])),
    "weights is a float": (TypeError, lambda: af.segment_mse([S], [S], 0.5)),
    "weights is a bool": (TypeError, lambda: af.segment_mse([S], [S], [True])),
    "weights.shape=(2,)": (ValueError, lambda: af.segment_mse([S], [S], torch.ones(2))),
    "weights.dtype=torch.int64": (TypeError, lambda: af.segment_mse([S], [S], torch.ones(1, dtype=torch.int64))),
    "weights.device=meta": (ValueError, lambda: af.segment_mse([S], [S], torch.ones(1, device="meta"))),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message):
    error, call = REFUSED[message]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
