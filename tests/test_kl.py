"""The KL family, every backend against eager PyTorch in fp64."""

from __future__ import annotations

import math

import oracles_kl as oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import amkd_fast as af
from amkd_fast import backends

OPERATION = "kl"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# One shape for every launch plan: below a vector, a few rows a block, a row a block, many columns, shared rows.
# The narrow ones have many rows, because few give errors that luck decides.
SHAPES = ((500, 3), (500, 10), (128, 100), (33, 1000), (7, 4097), (2, 40000))
INF = math.inf


def logits(shape, dtype=torch.float32, device="cpu", seed=0, shift=0.0, scale=3.0):
    """Student and teacher logits, drawn in fp64 and rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale + shift
    return pair.to(dtype).to(device).unbind()


def divergence_of(student, teacher, temperature, divergence, beta=0.5, **options):
    """The public function of a divergence, without T² unless asked for."""
    options.setdefault("scale_by_t2", False)
    if divergence == "soft_cross_entropy":
        return af.soft_cross_entropy(student, teacher, temperature, **options)
    return af.kl_div(student, teacher, temperature, divergence=divergence, beta=beta, **options)


def rows_and_grad(student, teacher, temperature, divergence, beta=0.5):
    student = student.detach().clone().requires_grad_()
    rows = divergence_of(student, teacher, temperature, divergence, beta, reduction="none")
    rows.sum().backward()
    return rows.detach(), student.grad


# ---- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", oracle.DIVERGENCES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_within_that_of_eager(backend, device, shape, dtype, divergence):
    student, teacher = logits(shape, dtype)
    truth = oracle.rows_and_grad(student.double(), teacher.double(), 3.0, divergence, 0.3)
    eager = oracle.rows_and_grad(student, teacher, 3.0, divergence, 0.3)
    ours = rows_and_grad(student.to(device), teacher.to(device), 3.0, divergence, 0.3)
    assert ours[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ours[1].dtype == dtype
    for value, rival, exact, factor in zip(ours, eager, truth, (2.0, 3.0), strict=True):
        # In fp64 the truth is no better than its rivals; one rounding of a statistic is the least that fp32 can show.
        floor = 1e-13 if dtype == torch.float64 else 6e-8
        assert oracle.relative_error(value, exact) <= max(factor * oracle.relative_error(rival, exact), floor)


@pytest.mark.parametrize("divergence", oracle.DIVERGENCES)
@pytest.mark.parametrize("shape", [(16, 10), (33, 1000)], ids=str)
def test_common_offset_of_1e4_costs_no_accuracy(backend, device, shape, divergence):
    student, teacher = logits(shape, shift=1e4)
    truth = oracle.rows_and_grad(student.double(), teacher.double(), 3.0, divergence)
    ours = rows_and_grad(student.to(device), teacher.to(device), 3.0, divergence)
    for value, exact in zip(ours, truth, strict=True):
        assert oracle.relative_error(value, exact) <= 1e-6


@pytest.mark.parametrize("divergence", oracle.DIVERGENCES)
def test_longest_rows(backend, device, divergence):
    student, teacher = logits((1, 262144))
    truth = oracle.rows_and_grad(student.double(), teacher.double(), 2.0, divergence)
    ours = rows_and_grad(student.to(device), teacher.to(device), 2.0, divergence)
    for value, exact in zip(ours, truth, strict=True):
        assert oracle.relative_error(value, exact) <= 3e-6


@pytest.mark.parametrize("divergence", oracle.DIVERGENCES)
def test_gradcheck(backend, device, divergence):
    student, teacher = (x.requires_grad_() for x in logits((4, 7), torch.float64, device))
    weight = torch.rand(4, dtype=torch.float64, device=device, requires_grad=True)
    for reduction in ("none", "batchmean"):
        assert torch.autograd.gradcheck(
            lambda s, t, w, r=reduction: divergence_of(s, t, 2.5, divergence, 0.3, weight=w, reduction=r),
            (student, teacher, weight),
        )


def test_gradcheck_of_distillation_loss(backend, device):
    student, teacher = (x.requires_grad_() for x in logits((5, 7), torch.float64, device))
    weights = [torch.rand(5, dtype=torch.float64, device=device, requires_grad=True) for _ in range(2)]
    labels = torch.tensor([0, 6, -100, 3, 2], device=device)
    for divergence in oracle.DIVERGENCES[:3]:
        assert torch.autograd.gradcheck(
            lambda s, t, a, b, d=divergence: (
                af.distillation_loss(s, t, labels, temperature=2.0, ce_weight=a, kl_weight=b, divergence=d).total
            ),
            (student, teacher, *weights),
        )


# ---- meaning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("weight", [None, 0.7, "tensor"])
def test_reductions_weights_and_t2(backend, device, reduction, weight):
    student, teacher = logits((3, 4, 6), torch.float64, device)
    weight = torch.rand(3, 4, dtype=torch.float64, device=device) if weight == "tensor" else weight
    rows = oracle.rows(student, teacher, 2.0, "forward") * 4.0 * (1.0 if weight is None else weight)
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.mean(), "batchmean": rows.sum() / 3}[reduction]
    actual = af.kl_div(student, teacher, 2.0, weight=weight, reduction=reduction)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_batchmean_is_that_of_torch(backend, device):
    student, teacher = logits((6, 9), torch.float64, device)
    expected = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(af.kl_div(student, teacher), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("labels_dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("weights", ["floats", "tensors"])
def test_distillation_loss(backend, device, labels_dtype, weights):
    student, teacher = logits((6, 9), torch.float64, device)
    student.requires_grad_()
    labels = torch.tensor([0, 8, -7, 3, -7, 1], device=device)
    ce_weight, kl_weight = (0.2, 0.7) if weights == "floats" else torch.rand(2, 6, dtype=torch.float64, device=device)
    ce = F.cross_entropy(student, labels, ignore_index=-7, reduction="none")
    kl = 9.0 * oracle.rows(student, teacher, 3.0, "forward")
    expected = (ce_weight * ce).sum() / 4 + (kl_weight * kl).mean()
    (expected_grad,) = torch.autograd.grad(expected, student, retain_graph=True)
    loss = af.distillation_loss(
        student,
        teacher,
        labels.to(labels_dtype),
        temperature=3.0,
        ce_weight=ce_weight,
        kl_weight=kl_weight,
        ignore_index=-7,
    )
    (grad,) = torch.autograd.grad(loss.total, student)
    torch.testing.assert_close(loss.total, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.ce, ce.sum() / 4, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.kl, kl.mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-11, atol=1e-14)
    assert not loss.ce.requires_grad
    assert not loss.kl.requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distillation_error_is_within_that_of_eager(backend, device, dtype):
    student, teacher = logits((128, 100), dtype)
    labels = torch.arange(128) % 100

    def eager(s, t):
        s = s.detach().clone().requires_grad_()
        loss = 0.1 * F.cross_entropy(s, labels) + 0.9 * 16 * oracle.rows(s, t, 4.0, "forward").mean()
        loss.backward()
        return loss.detach(), s.grad

    truth, rival = eager(student.double(), teacher.double()), eager(student, teacher)
    leaf = student.to(device).requires_grad_()
    loss = af.distillation_loss(leaf, teacher.to(device), labels.to(device)).total
    loss.backward()
    floor = 1e-13 if dtype == torch.float64 else 6e-8
    for value, other, exact, factor in zip((loss, leaf.grad), rival, truth, (2.0, 3.0), strict=True):
        assert oracle.relative_error(value, exact) <= max(factor * oracle.relative_error(other, exact), floor)


def test_no_labels_or_only_ignored_ones(backend, device):
    student, teacher = logits((4, 5), device=device)
    for labels in (None, torch.full((4,), -100, device=device)):
        loss = af.distillation_loss(student, teacher, labels)
        assert loss.ce == 0
        torch.testing.assert_close(loss.total, 0.9 * loss.kl)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5,), (2, 3, 5), (3, 1)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_any_leading_shape(backend, device, shape, reduction):
    student, teacher = logits(shape, device=device)
    student.requires_grad_()
    loss = af.kl_div(student, teacher, 2.0, reduction=reduction)
    loss.sum().backward()
    assert loss.shape == (shape[:-1] if reduction == "none" else ())
    assert student.grad.shape == shape
    expected = oracle.rows(student.detach().double(), teacher.double(), 2.0, "forward") * 4
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
    expected = rows_and_grad(student.contiguous(), teacher.contiguous(), 2.0, "forward")
    for value, other in zip(rows_and_grad(student, teacher, 2.0, "forward"), expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-7)


def test_mixed_dtypes_meet_in_the_common_one(backend, device):
    student, teacher = logits((4, 6), torch.bfloat16, device)
    student = student.detach().requires_grad_()
    loss = af.kl_div(student, teacher.float())
    loss.backward()
    assert student.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, af.kl_div(student.detach().float(), teacher.float()))


# ---- masks and values that are no numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", oracle.DIVERGENCES)
@pytest.mark.parametrize("classes", [7, 100, 5000])
def test_masked_classes_are_as_if_absent(backend, device, divergence, classes):
    student, teacher = logits((4, classes), device=device)
    kept = torch.arange(classes, device=device) % 3 != 1
    expected, expected_grad = rows_and_grad(student[:, kept], teacher[:, kept], 2.0, divergence, 0.3)
    masked = [x.masked_fill(~kept, -INF) for x in (student, teacher)]
    rows, grad = rows_and_grad(*masked, 2.0, divergence, 0.3)
    torch.testing.assert_close(rows, expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(grad[:, kept], expected_grad, rtol=1e-5, atol=1e-7)
    assert (grad[:, ~kept] == 0).all()


def test_class_that_only_the_student_excludes_is_infinitely_wrong(backend, device):
    student, teacher = logits((3, 9), device=device)
    student[1, 4] = -INF
    rows = af.kl_div(student, teacher, reduction="none")
    assert rows[1] == INF
    assert torch.isfinite(rows[[0, 2]]).all()


@pytest.mark.parametrize("divergence", oracle.DIVERGENCES)
@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("network", [0, 1])
@pytest.mark.parametrize("classes", [9, 3000])
def test_bad_logit_poisons_its_row_alone(backend, device, divergence, value, network, classes):
    pair = [x.clone() for x in logits((5, classes), device=device)]
    clean = rows_and_grad(*pair, 2.0, divergence)
    pair[network][2, classes // 2] = value
    rows, grad = rows_and_grad(*pair, 2.0, divergence)
    others = [0, 1, 3, 4]
    assert rows[2].isnan()
    assert grad[2].isnan().any()
    assert torch.equal(rows[others], clean[0][others])
    assert torch.equal(grad[others], clean[1][others])


def test_row_without_any_class_is_nan(backend, device):
    student, teacher = logits((3, 6), device=device)
    student[1], teacher[1] = -INF, -INF
    rows, grad = rows_and_grad(student, teacher, 1.0, "forward")
    assert rows[1].isnan()
    assert torch.isfinite(rows[[0, 2]]).all()
    assert torch.isfinite(grad[[0, 2]]).all()


def test_equal_networks_have_no_divergence(backend, device):
    student, _ = logits((16, 50), device=device)
    for divergence in oracle.DIVERGENCES[:3]:
        rows, grad = rows_and_grad(student, student.clone(), 2.0, divergence)
        assert rows.abs().max() < 1e-6
        assert grad.abs().max() < 1e-7


# ---- autograd -------------------------------------------------------------------------------------------------------


def test_second_backward_of_one_graph_gives_the_same(backend, device):
    student, teacher = logits((8, 20), device=device)
    student.requires_grad_()
    loss = af.distillation_loss(student, teacher, torch.arange(8, device=device)).total
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (second,) = torch.autograd.grad(loss, student, 3.0 * torch.ones_like(loss))
    torch.testing.assert_close(second, 3.0 * first, rtol=1e-5, atol=1e-8)


def test_double_backward(backend, device):
    student, teacher = (x.requires_grad_() for x in logits((3, 5), torch.float64, device))
    assert torch.autograd.gradgradcheck(lambda s, t: af.kl_div(s, t, 2.0), (student, teacher))


def test_nothing_of_the_logits_size_is_saved(backend, device):
    if backend == "reference":
        pytest.skip("the reference is plain autograd")
    student, teacher = logits((64, 50), device=device)
    student.requires_grad_()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        af.kl_div(student, teacher, 2.0)
    inputs = {student.data_ptr(), teacher.data_ptr()}
    assert inputs <= {tensor.data_ptr() for tensor in saved}
    assert sum(tensor.numel() for tensor in saved if tensor.data_ptr() not in inputs) <= 8 * 64


def test_inputs_stay_as_they_are(backend, device):
    student, teacher = logits((8, 20), device=device)
    before = student.clone(), teacher.clone()
    student.requires_grad_()
    af.kl_div(student, teacher, 2.0).backward()
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


def test_every_element_of_the_outputs_is_written(backend, device):
    shapes = [(5, 3), (128, 100), (3, 4097), (1, 40000)]
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN
    try:
        assert torch.empty_strided((4,), (1,), device=device).isnan().all()
        for shape in shapes:
            student, teacher = logits(shape, device=device)
            student.requires_grad_()
            labels = torch.zeros(shape[0], dtype=torch.int64, device=device)
            loss = af.distillation_loss(student, teacher, labels)
            loss.total.backward()
            assert torch.isfinite(torch.stack([*loss])).all()
            assert torch.isfinite(student.grad).all()
            assert torch.isfinite(af.kl_div(student, teacher, reduction="none")).all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_same_bits_on_a_second_run_and_on_other_threads(backend, device):
    threads = torch.get_num_threads()
    student, teacher = logits((200, 300), device=device)
    runs = []
    try:
        for count in (threads, threads, 1):
            torch.set_num_threads(count)
            runs.append((af.kl_div(student, teacher, 2.0), *rows_and_grad(student, teacher, 2.0, "js")))
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
    with torch.autocast(device.type, dtype=dtype):
        student = layer(images)
        loss = af.kl_div(student, torch.zeros(4, 10, device=device), 2.0)
    loss.backward()
    assert student.dtype == dtype
    assert loss.dtype == torch.float32
    assert torch.isfinite(layer.weight.grad).all()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(backend, device, dynamic):
    student, teacher = logits((12, 9), device=device)
    labels = torch.arange(12, device=device) % 9
    weight = torch.rand(12, device=device)

    def objective(s, t):
        loss = af.distillation_loss(s * 1.5, t, labels, kl_weight=weight)
        return loss.total + af.kl_div(s, t, 2.0, divergence="js"), loss.kl

    results = []
    torch._dynamo.reset()
    # The backend under test is what is compiled; code generation around it is torch's own affair.
    for function in (objective, torch.compile(objective, fullgraph=True, dynamic=dynamic, backend="aot_eager")):
        leaf = student.clone().requires_grad_()
        loss, part = function(leaf, teacher)
        loss.backward()
        results.append((loss.detach(), part, leaf.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_operators_keep_the_rules_of_torch(backend, device):
    if backend == "reference":
        pytest.skip("the reference has no operators")
    from amkd_fast.ops import kl

    af.kl_div(torch.zeros(1, 2, device=device), torch.zeros(1, 2, device=device))  # makes the operators known
    forward, backward = kl._OPERATORS[backend]
    student, teacher = logits((6, 9), device=device)
    labels, weight = torch.arange(6, device=device), torch.rand(6, device=device)
    tests = ("test_schema", "test_faketensor")
    for per_row, extras in ((False, (weight, labels, weight)), (True, (None, None, None))):
        scalars = (2.0, 0, 0.5, 4.0, 0.1, 0.3, -100, per_row)
        torch.library.opcheck(forward, (student, teacher, *extras, *scalars), test_utils=tests)
        loss, stats = forward(student, teacher, *extras, *scalars)
        upstream = torch.ones_like(loss)
        torch.library.opcheck(backward, (upstream, student, teacher, *extras, stats, *scalars), test_utils=tests)


# ---- any input that keeps the rules ---------------------------------------------------------------------------------


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
    if draw(st.booleans()):
        teacher = F.pad(teacher, (1, 2))[:, 1:-2]
    return student, teacher, draw(st.sampled_from(oracle.DIVERGENCES)), draw(st.sampled_from([0.5, 1.0, 4.0]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(problems())
def test_any_shape_dtype_stride_and_mask(backend, device, problem):
    student, teacher, divergence, temperature = problem
    with backends.backend("reference"):
        truth = rows_and_grad(student.double(), teacher.double(), temperature, divergence, 0.4)
    ours = rows_and_grad(student.to(device), teacher.to(device), temperature, divergence, 0.4)
    step = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[student.dtype]
    exact = 1e-12 if student.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(ours[0].double().cpu(), truth[0], rtol=exact, atol=exact)
    torch.testing.assert_close(ours[1].double().cpu(), truth[1], rtol=step, atol=exact)


# ---- refusals -------------------------------------------------------------------------------------------------------

S = torch.zeros(3, 4)
REFUSED = {
    "temperature=0.0": (ValueError, lambda: af.kl_div(S, S, 0.0)),
    "temperature=nan": (ValueError, lambda: af.kl_div(S, S, math.nan)),
    "temperature is a Tensor": (TypeError, lambda: af.kl_div(S, S, torch.tensor(2.0))),
    "temperature is a bool": (TypeError, lambda: [af.kl_div(S, S, value) for value in (1.0, True)]),  # equal, yet
    "temperature is a list": (TypeError, lambda: af.kl_div(S, S, [2.0])),
    "divergence='other'": (ValueError, lambda: af.kl_div(S, S, divergence="other")),
    "divergence='soft_cross_entropy'": (ValueError, lambda: af.kl_div(S, S, divergence="soft_cross_entropy")),
    "beta=1.0": (ValueError, lambda: af.kl_div(S, S, divergence="js", beta=1.0)),
    "reduction='avg'": (ValueError, lambda: af.kl_div(S, S, reduction="avg")),
    "weight=inf": (ValueError, lambda: af.kl_div(S, S, weight=INF)),
    "weight.shape=(4,)": (ValueError, lambda: af.kl_div(S, S, weight=torch.ones(4))),
    "weight.dtype=torch.int64": (TypeError, lambda: af.kl_div(S, S, weight=torch.ones(3, dtype=torch.int64))),
    "student is a list": (TypeError, lambda: af.kl_div([0.0], S)),
    "student.dtype=torch.int64": (TypeError, lambda: af.kl_div(S.long(), S)),
    "student.shape=()": (ValueError, lambda: af.kl_div(torch.tensor(1.0), torch.tensor(1.0))),
    "student.shape=(3, 0)": (ValueError, lambda: af.kl_div(S[:, :0], S[:, :0])),
    "teacher.shape=(3, 3)": (ValueError, lambda: af.kl_div(S, S[:, :3])),
    "teacher.device=meta": (ValueError, lambda: af.kl_div(S, S.to("meta"))),
    "labels.shape=(4,)": (ValueError, lambda: af.distillation_loss(S, S, torch.zeros(4, dtype=torch.int64))),
    "labels.dtype=torch.float32": (TypeError, lambda: af.distillation_loss(S, S, torch.zeros(3))),
    "ignore_index is a float": (TypeError, lambda: af.distillation_loss(S, S, ignore_index=0.5)),
    "ce_weight=nan": (ValueError, lambda: af.distillation_loss(S, S, ce_weight=math.nan)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message):
    error, call = REFUSED[message]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("label", [4, -1])
def test_label_out_of_range(backend, device, label):
    student = S.to(device, copy=True).requires_grad_()
    labels = torch.tensor([0, label, 1], device=device)
    if device.type == "cpu":
        with pytest.raises(ValueError, match=rf"labels\[1\]={label}: must be from 0 to 3"):
            af.distillation_loss(student, S, labels)
    else:
        assert af.distillation_loss(student, S.to(device), labels).total.isnan()


class Unused(torch.autograd.Function):
    """Passes a value on and no gradient back."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_no_gradient_arrives(backend, device):
    student = S.to(device, copy=True).requires_grad_()
    labels = torch.tensor([0, 1, 2], device=device)
    loss = af.distillation_loss(student, S.to(device), labels)
    Unused.apply(loss.total).backward()
    assert student.grad is None or not student.grad.any()
