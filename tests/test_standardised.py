"""The standardised KL divergence, every backend against eager PyTorch in fp64."""

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
from amkd_fast.losses import StandardisedKLLoss

OPERATION = "kl"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Below a vector, a few rows a block, a row a block, more columns than a block of sums or a tile has, long.
SHAPES = ((500, 3), (500, 10), (128, 100), (32, 1000), (5, 4097), (2, 20000))
INF = math.inf


def logits(shape, dtype=torch.float32, device="cpu", seed=0, shift=0.0, scale=3.0):
    """Student and teacher logits, drawn in fp64 and rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale + shift
    return pair.to(dtype).to(device).unbind()


def eager(student, teacher, temperature):
    """What a user would write: the rows without T²."""
    u_s, u_t = ((z - z.mean(-1, keepdim=True)) / z.std(-1, keepdim=True) / temperature for z in (student, teacher))
    return F.kl_div(F.log_softmax(u_s, -1), F.log_softmax(u_t, -1), reduction="none", log_target=True).sum(-1)


def ours(student, teacher, temperature):
    return af.standardised_kl_div(student, teacher, temperature, scale_by_t2=False, reduction="none")


def rows_and_grad(function, student, teacher, temperature=2.0):
    student = student.detach().clone().requires_grad_()
    rows = function(student, teacher, temperature)
    rows.sum().backward()
    return rows.detach(), student.grad


# ---- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_within_that_of_eager(backend, device, shape, dtype):
    student, teacher = logits(shape, dtype)
    truth = rows_and_grad(eager, student.double(), teacher.double())
    rival = rows_and_grad(eager, student, teacher)
    found = rows_and_grad(ours, student.to(device), teacher.to(device))
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found[1].dtype == dtype
    for value, other, exact, factor in zip(found, rival, truth, (2.0, 3.0), strict=True):
        floor = 1e-13 if dtype == torch.float64 else 6e-8
        assert relative_error(value, exact) <= max(factor * relative_error(other, exact), floor)


@pytest.mark.parametrize("shape", [(16, 10), (32, 1000)], ids=str)
def test_common_offset_costs_no_accuracy(backend, device, shape):
    student, teacher = logits(shape, shift=1e4)
    truth = rows_and_grad(eager, student.double(), teacher.double())
    for value, exact in zip(rows_and_grad(ours, student.to(device), teacher.to(device)), truth, strict=True):
        assert relative_error(value, exact) <= 3e-6


def test_scale_and_offset_do_not_matter(backend, device):
    student, teacher = logits((20, 12), torch.float64, device)
    rows = ours(student, teacher, 2.0)
    torch.testing.assert_close(ours(100 * student - 7, 1e-3 * teacher + 5, 2.0), rows, rtol=1e-9, atol=1e-12)


def test_population_deviation_is_a_temperature(backend, device):
    student, teacher = logits((20, 12), torch.float64, device)
    u_s, u_t = (z / z.std(-1, correction=0, keepdim=True) / 2.0 for z in (student, teacher))
    expected = F.kl_div(u_s.log_softmax(-1), u_t.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(ours(student, teacher, 2.0 * math.sqrt(11 / 12)), expected, rtol=1e-9, atol=1e-13)


def test_gradcheck(backend, device):
    student, teacher = (x.requires_grad_() for x in logits((4, 7), torch.float64, device))
    weight = torch.rand(4, dtype=torch.float64, device=device, requires_grad=True)
    for reduction in ("none", "batchmean"):
        assert torch.autograd.gradcheck(
            lambda s, t, w, r=reduction: af.standardised_kl_div(s, t, 2.5, weight=w, reduction=r),
            (student, teacher, weight),
        )


def test_double_backward(backend, device):
    student, teacher = (x.requires_grad_() for x in logits((3, 5), torch.float64, device))
    assert torch.autograd.gradgradcheck(lambda s, t: af.standardised_kl_div(s, t, 2.0), (student, teacher))


# ---- meaning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("weight", [None, 0.7, "tensor"])
def test_reductions_weights_and_t2(backend, device, reduction, weight):
    student, teacher = logits((3, 4, 6), torch.float64, device)
    student.requires_grad_()
    weight = torch.rand(3, 4, dtype=torch.float64, device=device) if weight == "tensor" else weight
    rows = eager(student, teacher, 2.0) * 4.0 * (1.0 if weight is None else weight)
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.mean(), "batchmean": rows.sum() / 3}[reduction]
    upstream = torch.arange(1.0, 1.0 + expected.numel(), dtype=torch.float64, device=device).view(expected.shape)
    (expected_grad,) = torch.autograd.grad(expected, student, upstream)
    actual = af.standardised_kl_div(student, teacher, 2.0, weight=weight, reduction=reduction)
    (grad,) = torch.autograd.grad(actual, student, upstream)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5,), (2, 3, 5), (1, 4)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_any_leading_shape(backend, device, shape, reduction):
    student, teacher = logits(shape, device=device)
    student.requires_grad_()
    loss = af.standardised_kl_div(student, teacher, 2.0, reduction=reduction)
    loss.sum().backward()
    assert loss.shape == (shape[:-1] if reduction == "none" else ())
    assert student.grad.shape == shape
    expected = eager(student.detach().double(), teacher.double(), 2.0) * 4
    if reduction in ("none", "sum"):
        torch.testing.assert_close(loss.sum().double(), expected.sum(), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "every_other", "expanded", "shifted"])
def test_any_strides(backend, device, layout):
    student, teacher = logits((6, 10), device=device)
    make = {
        "transposed": lambda x: x.t().contiguous().t(),
        "sliced": lambda x: F.pad(x, (3, 2))[:, 3:-2],
        "every_other": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
        "expanded": lambda x: x[:1].expand(6, 10),
        "shifted": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(6, 10),
    }[layout]
    student, teacher = make(student), make(teacher)
    expected = rows_and_grad(ours, student.contiguous(), teacher.contiguous())
    for value, other in zip(rows_and_grad(ours, student, teacher), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-7)


def test_mixed_dtypes_meet_in_the_common_one(backend, device):
    student, teacher = logits((4, 6), torch.bfloat16, device)
    student = student.detach().requires_grad_()
    loss = af.standardised_kl_div(student, teacher.float())
    loss.backward()
    assert student.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, af.standardised_kl_div(student.detach().float(), teacher.float()))


# ---- rows that do not vary, masks, values that are no numbers -------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 3, 100, 5000])
def test_constant_row_is_uniform_and_does_not_pull(backend, device, dtype, classes):
    student, teacher = (x.clone() for x in logits((4, classes), dtype, device))
    student[1] = 0.1  # whose sum over the classes rounds
    teacher[2] = -1e4
    uniform = torch.full((classes,), 1.0 / classes, dtype=torch.float64)
    rows, grad = rows_and_grad(ours, student, teacher)
    assert torch.isfinite(rows).all()
    assert torch.isfinite(grad).all()
    assert (grad[1] == 0).all()
    if classes > 1:
        p = F.softmax((teacher[1].double() / teacher[1].double().std() / 2.0).cpu(), -1)
        q = F.softmax((student[2].double() / student[2].double().std() / 2.0).cpu(), -1)
        expected = [(a * (a / b).log()).sum() for a, b in ((p, uniform), (uniform, q))]
        torch.testing.assert_close(rows[1:3].double().cpu(), torch.stack(expected), rtol=1e-5, atol=1e-6)
        assert grad[2].abs().sum() > 0
    else:
        assert (rows == 0).all()


@pytest.mark.parametrize("classes", [7, 100, 5000])
def test_masked_classes_are_as_if_absent(backend, device, classes):
    student, teacher = logits((4, classes), device=device)
    kept = torch.arange(classes, device=device) % 3 != 1
    student[3] = 0.5  # nothing varies but the mask
    expected, expected_grad = rows_and_grad(ours, student[:, kept], teacher[:, kept])
    rows, grad = rows_and_grad(ours, *(x.masked_fill(~kept, -INF) for x in (student, teacher)))
    torch.testing.assert_close(rows, expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(grad[:, kept], expected_grad, rtol=1e-5, atol=1e-7)
    assert (grad[:, ~kept] == 0).all()


def test_class_that_only_the_student_excludes_is_infinitely_wrong(backend, device):
    student, teacher = logits((3, 9), device=device)
    student[1, 4] = -INF
    rows = ours(student, teacher, 1.0)
    assert rows[1] == INF
    assert torch.isfinite(rows[[0, 2]]).all()


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("network", [0, 1])
@pytest.mark.parametrize("classes", [9, 5000])
def test_bad_logit_poisons_its_row_alone(backend, device, value, network, classes):
    pair = [x.clone() for x in logits((5, classes), device=device)]
    clean = rows_and_grad(ours, *pair)
    pair[network][2, classes // 2] = value
    rows, grad = rows_and_grad(ours, *pair)
    others = [0, 1, 3, 4]
    assert rows[2].isnan()
    assert grad[2].isnan().any()
    assert torch.equal(rows[others], clean[0][others])
    assert torch.equal(grad[others], clean[1][others])


def test_row_without_any_class_is_nan(backend, device):
    student, teacher = logits((3, 6), device=device)
    student[1], teacher[1] = -INF, -INF
    rows, grad = rows_and_grad(ours, student, teacher)
    assert rows[1].isnan()
    assert torch.isfinite(rows[[0, 2]]).all()
    assert torch.isfinite(grad[[0, 2]]).all()


@st.composite
def problems(draw):
    rows, classes = draw(st.integers(0, 9)), draw(st.integers(1, 70))
    dtype = draw(st.sampled_from(DTYPES))
    student, teacher = logits(
        (rows, classes), dtype, seed=draw(st.integers(0, 99)), shift=draw(st.sampled_from([0, 50]))
    )
    masked = torch.tensor(draw(st.lists(st.booleans(), min_size=classes, max_size=classes)), dtype=torch.bool)
    masked[draw(st.integers(0, classes - 1))] = False
    student, teacher = student.masked_fill(masked, -INF), teacher.masked_fill(masked, -INF)
    if draw(st.booleans()):
        student = student.t().contiguous().t()
    return student, teacher, draw(st.sampled_from([0.5, 1.0, 4.0]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(problems())
def test_any_shape_dtype_stride_and_mask(backend, device, problem):
    student, teacher, temperature = problem
    with backends.backend("reference"):
        truth = rows_and_grad(ours, student.double(), teacher.double(), temperature)
    found = rows_and_grad(ours, student.to(device), teacher.to(device), temperature)
    step = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[student.dtype]
    exact = 1e-11 if student.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found[0].double().cpu(), truth[0], rtol=exact, atol=exact)
    # 1/s is a factor of the gradient: two logits of a narrow dtype that lie close together make it large.
    spread = truth[1].abs().amax().clamp(min=1.0).item() if truth[1].numel() else 1.0
    torch.testing.assert_close(found[1].double().cpu(), truth[1], rtol=step, atol=exact * spread)


# ---- autograd -------------------------------------------------------------------------------------------------------


def test_second_backward_of_one_graph_gives_the_same(backend, device):
    student, teacher = logits((8, 20), device=device)
    student.requires_grad_()
    loss = af.standardised_kl_div(student, teacher)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (again,) = torch.autograd.grad(loss, student, retain_graph=True)
    (thrice,) = torch.autograd.grad(loss, student, 3.0 * torch.ones_like(loss))
    assert torch.equal(first, again)
    torch.testing.assert_close(thrice, 3.0 * first, rtol=1e-5, atol=1e-8)


def test_nothing_of_the_logits_size_is_saved(backend, device):
    if backend == "reference":
        pytest.skip("the reference is plain autograd")
    student, teacher = logits((64, 50), device=device)
    student.requires_grad_()
    before = student.clone(), teacher.clone()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = af.standardised_kl_div(student, teacher, 2.0)
    loss.backward()
    inputs = {student.data_ptr(), teacher.data_ptr()}
    assert inputs <= {tensor.data_ptr() for tensor in saved}
    assert sum(tensor.numel() for tensor in saved if tensor.data_ptr() not in inputs) <= 8 * 64
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_every_element_of_the_outputs_is_written(backend, device):
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN
    try:
        assert torch.empty_strided((4,), (1,), device=device).isnan().all()
        for shape in ((5, 3), (128, 100), (20, 3000), (3, 4097), (1, 20000)):
            student, teacher = logits(shape, device=device)
            for rows_and_gradient in (rows_and_grad(ours, student, teacher), rows_and_grad(mean, student, teacher)):
                assert all(torch.isfinite(value).all() for value in rows_and_gradient)
    finally:
        torch.use_deterministic_algorithms(False)


def mean(student, teacher, temperature):
    return af.standardised_kl_div(student, teacher, temperature)


def test_same_bits_on_a_second_run_and_on_other_threads(backend, device):
    threads = torch.get_num_threads()
    student, teacher = logits((50, 700), device=device)
    runs = []
    try:
        for count in (threads, threads, 1):
            torch.set_num_threads(count)
            runs.append((mean(student, teacher, 2.0), *rows_and_grad(ours, student, teacher)))
    finally:
        torch.set_num_threads(threads)
    if backend == "reference":  # torch's own sums depend on the number of threads
        runs.pop()
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(backend, device, dtype):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(8, 10, device=device)
    images = torch.randn(4, 8, generator=generator).to(device)
    teacher = torch.randn(4, 10, generator=generator).to(device)
    with torch.autocast(device.type, dtype=dtype):
        student = layer(images)
        loss = af.standardised_kl_div(student, teacher, 2.0)
    loss.backward()
    assert student.dtype == dtype
    assert loss.dtype == torch.float32
    assert torch.isfinite(layer.weight.grad).all()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(backend, device, dynamic):
    student, teacher = logits((12, 9), device=device)
    weight = torch.rand(12, device=device)

    def objective(s, t):
        return af.standardised_kl_div(s * 1.5, t, 2.0, weight=weight) + ours(s, t, 3.0).sum()

    results = []
    torch._dynamo.reset()
    # The backend under test is what is compiled; code generation around it is torch's own affair.
    for function in (objective, torch.compile(objective, fullgraph=True, dynamic=dynamic, backend="aot_eager")):
        leaf = student.clone().requires_grad_()
        loss = function(leaf, teacher)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


def test_operators_keep_the_rules_of_torch(backend, device):
    if backend == "reference":
        pytest.skip("the reference has no operators")
    from amkd_fast.ops.kl import standardised

    student, teacher = logits((6, 9), device=device)
    ours(student, teacher, 1.0)  # makes the operators known
    forward, backward = standardised._OPERATORS[backend]
    tests = ("test_schema", "test_faketensor")
    for per_row, weight in ((False, torch.rand(6, device=device)), (True, None)):
        scalars = (2.0, 0.5, per_row)
        torch.library.opcheck(forward, (student, teacher, weight, *scalars), test_utils=tests)
        loss, stats = forward(student, teacher, weight, *scalars)
        arguments = (torch.ones_like(loss), student, teacher, weight, stats, *scalars)
        torch.library.opcheck(backward, arguments, test_utils=tests)


# ---- module, choice of the backend, refusals ------------------------------------------------------------------------


def test_module_is_the_function(backend, device):
    student, teacher = logits((4, 6), device=device)
    weight = torch.rand(4, device=device)
    module = StandardisedKLLoss(3.0, scale_by_t2=False, reduction="sum")
    expected = af.standardised_kl_div(student, teacher, 3.0, weight=weight, scale_by_t2=False, reduction="sum")
    assert torch.equal(module(student, teacher, weight), expected)
    assert "temperature=3.0" in repr(module)


def test_cuda_kernel_waits_for_a_gpu_to_confirm_it(monkeypatch):
    monkeypatch.setattr(backends, "_UNUSABLE", dict.fromkeys(backends.BACKENDS, ""))
    assert backends.select("kl", "cuda", 100) == "cuda"
    assert backends.select("kl", "cuda", 100, function="standardised_kl_div") == "triton"
    with backends.backend("cuda"):
        assert backends.select("kl", "cuda", 100, function="standardised_kl_div") == "cuda"


S = torch.zeros(3, 4)
REFUSED = {
    "temperature=0.0": (ValueError, lambda: af.standardised_kl_div(S, S, 0.0)),
    "temperature is a Tensor": (TypeError, lambda: af.standardised_kl_div(S, S, torch.tensor(2.0))),
    "reduction='avg'": (ValueError, lambda: af.standardised_kl_div(S, S, reduction="avg")),
    "weight=inf": (ValueError, lambda: af.standardised_kl_div(S, S, weight=INF)),
    "weight.shape=(4,)": (ValueError, lambda: af.standardised_kl_div(S, S, weight=torch.ones(4))),
    "student is a list": (TypeError, lambda: af.standardised_kl_div([0.0], S)),
    "student.dtype=torch.int64": (TypeError, lambda: af.standardised_kl_div(S.long(), S)),
    "student.shape=(3, 0)": (ValueError, lambda: af.standardised_kl_div(S[:, :0], S[:, :0])),
    "teacher.shape=(3, 3)": (ValueError, lambda: af.standardised_kl_div(S, S[:, :3])),
    "teacher.device=meta": (ValueError, lambda: af.standardised_kl_div(S, S.to("meta"))),
    "temperature=-1.0": (ValueError, lambda: StandardisedKLLoss(-1.0)),
    "reduction='none at all'": (ValueError, lambda: StandardisedKLLoss(reduction="none at all")),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message):
    error, call = REFUSED[message]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)
