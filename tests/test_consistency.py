"""Cosine-confidence distillation, every backend against eager PyTorch in fp64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles_kl import relative_error

import amkd_fast as af
from amkd_fast import backends
from amkd_fast.losses import ConsistencyLoss

OPERATION = "kl"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Below a vector, a few rows a block, a row a block, more columns than a block of sums or a tile has, long.
SHAPES = ((500, 3), (500, 10), (128, 100), (32, 1000), (5, 4097), (2, 20000))
INF = math.inf


def logits(shape, dtype=torch.float32, device="cpu", seed=0, shift=0.0):
    """Student, teacher, augmented student and teacher; the views of a network are alike."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(4, *shape, generator=generator, dtype=torch.float64) * 3.0
    draws[2:] += draws[:2]
    return (draws + shift).to(dtype).to(device).unbind()


def eager(student, teacher, augmented_student, augmented_teacher, temperature):
    """What a user would write: the total without T²."""

    def rows(s, t):
        log_q, log_p = F.log_softmax(s / temperature, -1), F.log_softmax(t / temperature, -1)
        return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)

    confidence = F.cosine_similarity(teacher, augmented_teacher) + 1.0
    return 0.5 * (rows(student, teacher).mean() + (confidence * rows(augmented_student, augmented_teacher)).mean())


def ours(*tensors):
    return af.consistency_kl(*tensors, scale_by_t2=False).total


def total_and_grads(function, tensors, temperature=2.0):
    """The total, and its gradients in both students."""
    tensors = [x.detach().clone().requires_grad_(i % 2 == 0) for i, x in enumerate(tensors)]
    total = function(*tensors, temperature)
    total.backward()
    return total.detach(), tensors[0].grad, tensors[2].grad


# ---- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_within_that_of_eager(backend, device, shape, dtype):
    tensors = logits(shape, dtype)
    truth = total_and_grads(eager, [x.double() for x in tensors])
    rival = total_and_grads(eager, tensors)
    found = total_and_grads(ours, [x.to(device) for x in tensors])
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found[1].dtype == found[2].dtype == dtype
    for value, other, exact, factor in zip(found, rival, truth, (2.0, 3.0, 3.0), strict=True):
        # The total is one number, and a rival's may be right by luck: one rounding of it is the least.
        floor = 1e-13 if dtype == torch.float64 else 6e-8
        assert relative_error(value, exact) <= max(factor * relative_error(other, exact), floor)


@pytest.mark.parametrize("shape", [(16, 10), (32, 1000)], ids=str)
def test_common_offset_of_1e4_costs_no_accuracy(backend, device, shape):
    tensors = logits(shape, shift=1e4)
    truth = total_and_grads(eager, [x.double() for x in tensors])
    for value, exact in zip(total_and_grads(ours, [x.to(device) for x in tensors]), truth, strict=True):
        assert relative_error(value, exact) <= 1e-6


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


def test_gradcheck_through_all_four(backend, device):
    tensors = [x.requires_grad_() for x in logits((2, 5), torch.float64, device)]
    assert torch.autograd.gradcheck(lambda *x: af.consistency_kl(*x, 2.5).total, tensors)


@pytest.mark.parametrize("needed", range(4))
def test_each_gradient_alone(backend, device, needed):
    tensors = [x.requires_grad_() for x in logits((5, 7), torch.float64, device)]
    (expected,) = torch.autograd.grad(eager(*tensors, 2.0), tensors[needed])
    leaves = [x.detach().requires_grad_(i == needed) for i, x in enumerate(tensors)]
    ours(*leaves, 2.0).backward()
    torch.testing.assert_close(leaves[needed].grad, expected, rtol=1e-10, atol=1e-13)


def test_double_backward(backend, device):
    tensors = [x.requires_grad_() for x in logits((2, 3), torch.float64, device)]
    assert torch.autograd.gradgradcheck(lambda *x: af.consistency_kl(*x, 2.0).total, tensors)


# ---- edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5), (1, 4), (3, 1)], ids=str)
def test_small_shapes(backend, device, shape):
    tensors = logits(shape, device=device)
    found = total_and_grads(ours, tensors)
    loss = af.consistency_kl(*tensors, 2.0)
    assert loss.confidence.shape == shape[:1]
    assert found[1].shape == found[2].shape == shape
    if shape == (1, 4):
        torch.testing.assert_close(found[0], eager(*tensors, 2.0), rtol=1e-5, atol=1e-7)
    else:  # no rows, or no choice
        assert loss.total == loss.clean == loss.augmented == 0
        assert not found[1].any()


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


@pytest.mark.parametrize("layout", ["transposed", "sliced", "every_other", "expanded", "shifted"])
def test_any_strides(backend, device, layout):
    make = {
        "transposed": lambda x: x.t().contiguous().t(),
        "sliced": lambda x: F.pad(x, (3, 2))[:, 3:-2],
        "every_other": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
        "expanded": lambda x: x[:1].expand(6, 10),
        "shifted": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(6, 10),
    }[layout]
    tensors = logits((6, 10), device=device)
    strided = [make(x).detach().requires_grad_(i % 2 == 0) for i, x in enumerate(tensors)]
    total = ours(*strided, 2.0)
    grads = torch.autograd.grad(total, strided[::2])
    expected = total_and_grads(ours, [make(x).contiguous() for x in tensors])
    for value, other in zip((total, *grads), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-7)


def test_mixed_dtypes_meet_in_the_common_one(backend, device):
    tensors = list(logits((4, 6), torch.bfloat16, device))
    tensors[0].requires_grad_()
    tensors[3] = tensors[3].float()
    loss = af.consistency_kl(*tensors)
    loss.total.backward()
    assert tensors[0].grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.total, af.consistency_kl(*(x.detach().float() for x in tensors)).total)


@pytest.mark.parametrize("classes", [7, 100, 5000])
def test_masked_classes_are_as_if_absent(backend, device, classes):
    tensors = logits((4, classes), device=device)
    kept = torch.arange(classes, device=device) % 3 != 1
    expected = total_and_grads(ours, [x[:, kept] for x in tensors])
    found = total_and_grads(ours, [x.masked_fill(~kept, -INF) for x in tensors])
    torch.testing.assert_close(found[0], expected[0], rtol=2e-6, atol=1e-6)
    for grad, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(grad[:, kept], other, rtol=1e-5, atol=1e-7)
        assert (grad[:, ~kept] == 0).all()


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


# ---- autograd -------------------------------------------------------------------------------------------------------


def test_second_backward_of_one_graph_gives_the_same(backend, device):
    tensors = logits((8, 20), device=device)
    students = [x.requires_grad_() for x in tensors[::2]]
    total = ours(*tensors, 2.0)
    first = torch.autograd.grad(total, students, retain_graph=True)
    again = torch.autograd.grad(total, students, retain_graph=True)
    thrice = torch.autograd.grad(total, students, 3.0 * torch.ones_like(total))
    for a, b, c in zip(first, again, thrice, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 3.0 * a, rtol=1e-5, atol=1e-8)


def test_nothing_of_the_logits_size_is_saved(backend, device):
    if backend == "reference":
        pytest.skip("the reference is plain autograd")
    tensors = logits((64, 50), device=device)
    before = [x.clone() for x in tensors]
    saved = []
    for student in tensors[::2]:
        student.requires_grad_()

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total = ours(*tensors, 2.0)
    total.backward()
    inputs = {x.data_ptr() for x in tensors}
    assert inputs <= {tensor.data_ptr() for tensor in saved}
    assert sum(tensor.numel() for tensor in saved if tensor.data_ptr() not in inputs) <= 10 * 64
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_every_element_of_the_outputs_is_written(backend, device):
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN
    try:
        assert torch.empty_strided((4,), (1,), device=device).isnan().all()
        for shape in ((5, 3), (128, 100), (20, 3000), (3, 4097), (1, 20000)):
            tensors = logits(shape, device=device)
            assert all(torch.isfinite(value).all() for value in total_and_grads(ours, tensors))
            assert all(torch.isfinite(part).all() for part in af.consistency_kl(*tensors))
    finally:
        torch.use_deterministic_algorithms(False)


def test_same_bits_on_a_second_run_and_on_other_threads(backend, device):
    threads = torch.get_num_threads()
    tensors = logits((50, 700), device=device)
    runs = []
    try:
        for count in (threads, threads, 1):
            torch.set_num_threads(count)
            runs.append((*total_and_grads(ours, tensors), *af.consistency_kl(*tensors)))
    finally:
        torch.set_num_threads(threads)
    if backend == "reference":  # torch's own sums depend on the number of threads
        runs.pop()
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(backend, device, dtype):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(8, 10, device=device)
    images = torch.randn(2, 4, 8, generator=generator).to(device)
    teacher = torch.randn(2, 4, 10, generator=generator).to(device)
    with torch.autocast(device.type, dtype=dtype):
        student = layer(images)
        loss = af.consistency_kl(student[0], teacher[0], student[1], teacher[1])
    loss.total.backward()
    assert student.dtype == dtype
    assert loss.total.dtype == torch.float32
    assert torch.isfinite(layer.weight.grad).all()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(backend, device, dynamic):
    tensors = logits((12, 9), device=device)

    def objective(student, teacher, augmented, augmented_teacher):
        loss = af.consistency_kl(student * 1.5, teacher, augmented * 1.5, augmented_teacher, 2.0)
        return loss.total, loss.clean, loss.augmented, loss.confidence

    results = []
    torch._dynamo.reset()
    # The backend under test is what is compiled; code generation around it is torch's own affair.
    for function in (objective, torch.compile(objective, fullgraph=True, dynamic=dynamic, backend="aot_eager")):
        leaves = [x.detach().clone().requires_grad_(i % 2 == 0) for i, x in enumerate(tensors)]
        found = function(*leaves)
        found[0].backward()
        results.append((*(x.detach() for x in found), leaves[0].grad, leaves[2].grad))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_operators_keep_the_rules_of_torch(backend, device):
    if backend == "reference":
        pytest.skip("the reference has no operators")
    from amkd_fast.ops.kl import consistency

    tensors = logits((6, 9), device=device)
    ours(*tensors, 1.0)  # makes the operators known
    forward, backward = consistency._OPERATORS[backend]
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward, (*tensors, 2.0, 4.0), test_utils=tests)
    total, stats = forward(*tensors, 2.0, 4.0)
    torch.library.opcheck(backward, (torch.ones_like(total), *tensors, stats, 2.0, 4.0), test_utils=tests)


# ---- module, choice of the backend, refusals ------------------------------------------------------------------------


def test_module_is_the_function(backend, device):
    tensors = logits((4, 6), device=device)
    found = ConsistencyLoss(3.0, scale_by_t2=False)(*tensors)
    expected = af.consistency_kl(*tensors, 3.0, scale_by_t2=False)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_cuda_kernel_waits_for_a_gpu_to_confirm_it(monkeypatch):
    monkeypatch.setattr(backends, "_UNUSABLE", dict.fromkeys(backends.BACKENDS, ""))
    assert backends.select("kl", "cuda", 100, function="consistency_kl") == "triton"
    with backends.backend("cuda"):
        assert backends.select("kl", "cuda", 100, function="consistency_kl") == "cuda"


S = torch.zeros(3, 4)
REFUSED = {
    "temperature=0.0": (ValueError, lambda: af.consistency_kl(S, S, S, S, 0.0)),
    "temperature is a Tensor": (TypeError, lambda: af.consistency_kl(S, S, S, S, torch.tensor(2.0))),
    "student is a list": (TypeError, lambda: af.consistency_kl([0.0], S, S, S)),
    "student.dtype=torch.int64": (TypeError, lambda: af.consistency_kl(S.long(), S, S, S)),
    "student.shape=(4,)": (ValueError, lambda: af.consistency_kl(S[0], S, S, S)),
    "student.shape=(3, 0)": (ValueError, lambda: af.consistency_kl(S[:, :0], S, S, S)),
    "teacher.shape=(3, 3)": (ValueError, lambda: af.consistency_kl(S, S[:, :3], S, S)),
    "augmented_student.shape=(2, 4)": (ValueError, lambda: af.consistency_kl(S, S, S[:2], S)),
    "augmented_teacher.device=meta": (ValueError, lambda: af.consistency_kl(S, S, S, S.to("meta"))),
    "augmented_teacher is a NoneType": (TypeError, lambda: af.consistency_kl(S, S, S, None)),
    "temperature=-1.0": (ValueError, lambda: ConsistencyLoss(-1.0)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message):
    error, call = REFUSED[message]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
