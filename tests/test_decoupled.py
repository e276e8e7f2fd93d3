"""Decoupled knowledge distillation, every backend against the public code's formulas in fp64."""

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

OPERATION = "kl"
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Below a vector, a few rows a block, a row a block, many columns, several sweeps a row.
SHAPES = ((500, 3), (500, 10), (128, 100), (33, 1000), (7, 4097), (2, 40000))
INF = math.inf


def problem(shape, dtype=torch.float32, device="cpu", seed=0, shift=0.0, scale=3.0):
    """Logits of student and teacher, drawn in fp64 and rounded to the dtype, and labels."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale + shift
    labels = torch.randint(shape[-1], shape[:-1], generator=generator)
    return *pair.to(dtype).to(device).unbind(), labels.to(device)


def public(student, teacher, labels, temperature, target_weight, other_weight):
    """A row's loss without T², as users write it: masks, sums of probabilities and −1000 for the target."""
    chosen = F.one_hot(labels.long(), student.shape[-1])

    def binary(probabilities):
        return torch.stack([(probabilities * chosen).sum(-1), (probabilities * (1 - chosen)).sum(-1)], -1)

    q, p = F.softmax(student / temperature, -1), F.softmax(teacher / temperature, -1)
    target = F.kl_div(binary(q).log(), binary(p), reduction="none").sum(-1)
    a = F.log_softmax(student / temperature - 1000.0 * chosen, -1)
    c = F.softmax(teacher / temperature - 1000.0 * chosen, -1)
    return target_weight * target + other_weight * F.kl_div(a, c, reduction="none").sum(-1)


def ours(student, teacher, labels, temperature, target_weight, other_weight):
    options = {"target_weight": target_weight, "other_weight": other_weight}
    return af.dkd_loss(student, teacher, labels, temperature, scale_by_t2=False, reduction="none", **options)


def rows_and_grad(rows_of, student, teacher, labels, temperature=3.0, target_weight=1.0, other_weight=2.0):
    student = student.detach().clone().requires_grad_()
    rows = rows_of(student, teacher, labels, temperature, target_weight, other_weight)
    rows.sum().backward()
    return rows.detach(), student.grad


# ---- accuracy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_within_that_of_eager(backend, device, shape, dtype):
    student, teacher, labels = problem(shape, dtype)
    truth = rows_and_grad(public, student.double(), teacher.double(), labels)
    eager = rows_and_grad(public, student, teacher, labels)
    found = rows_and_grad(ours, student.to(device), teacher.to(device), labels.to(device))
    assert found[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found[1].dtype == dtype
    for value, rival, exact, factor in zip(found, eager, truth, (2.0, 3.0), strict=True):
        # In fp64 the truth is no better than its rivals; one rounding of a statistic is the least that fp32 can show.
        floor = 1e-13 if dtype == torch.float64 else 6e-8
        assert relative_error(value, exact) <= max(factor * relative_error(rival, exact), floor)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["target", "others"])
def test_each_part_alone(backend, device, weights):
    student, teacher, labels = problem((64, 30))
    truth = rows_and_grad(public, student.double(), teacher.double(), labels, 2.0, *weights)
    eager = rows_and_grad(public, student, teacher, labels, 2.0, *weights)
    found = rows_and_grad(ours, student.to(device), teacher.to(device), labels.to(device), 2.0, *weights)
    for value, rival, exact, factor in zip(found, eager, truth, (2.0, 3.0), strict=True):
        assert relative_error(value, exact) <= max(factor * relative_error(rival, exact), 6e-8)


@pytest.mark.parametrize("shape", [(16, 10), (33, 1000)], ids=str)
def test_common_offset_of_1e4_costs_no_accuracy(backend, device, shape):
    student, teacher, labels = problem(shape, shift=1e4)
    truth = rows_and_grad(public, student.double(), teacher.double(), labels)
    found = rows_and_grad(ours, student.to(device), teacher.to(device), labels.to(device))
    for value, exact in zip(found, truth, strict=True):
        assert relative_error(value, exact) <= 1e-6


@pytest.mark.parametrize("classes", [10, 300])
@pytest.mark.parametrize("lead", [20.0, 300.0])
def test_certain_targets_keep_the_others_digits(backend, device, classes, lead):
    """p_y rounds to 1 in fp32, and e^-300 to 0, which is what the others would be beside the target."""
    student, teacher, labels = problem((32, classes))
    chosen = F.one_hot(labels, classes)
    student, teacher = student + lead * chosen, teacher + lead * chosen
    with backends.backend("reference"):
        truth = rows_and_grad(ours, student.double(), teacher.double(), labels, 1.0)
    found = rows_and_grad(ours, student.to(device), teacher.to(device), labels.to(device), 1.0)
    for value, exact in zip(found, truth, strict=True):
        assert relative_error(value, exact) <= 2e-6
    if backend == "reference":  # the kernels keep more digits than plain arithmetic in fp32 does
        return
    with backends.backend("reference"):
        truth = rows_and_grad(ours, student.double(), teacher.double(), labels, 4.0, 1.0, 0.0)
    found = rows_and_grad(ours, student.to(device), teacher.to(device), labels.to(device), 4.0, 1.0, 0.0)
    for value, exact in zip(found, truth, strict=True):
        assert relative_error(value, exact) <= 1e-4


def test_gradcheck(backend, device):
    student, teacher, labels = problem((4, 7), torch.float64, device)
    student.requires_grad_()
    teacher.requires_grad_()
    weight = torch.rand(4, dtype=torch.float64, device=device, requires_grad=True)
    for reduction in ("none", "mean"):
        assert torch.autograd.gradcheck(
            lambda s, t, w, r=reduction: af.dkd_loss(s, t, labels, 2.5, other_weight=2.0, weight=w, reduction=r),
            (student, teacher, weight),
        )


# ---- meaning --------------------------------------------------------------------------------------------------------


def test_parts_make_up_the_whole_divergence(backend, device):
    """KL(p_t‖p_s) = KL(b_t‖b_s) + (1 − p_y) KL(p̂_t‖p̂_s), which is what the method decouples."""
    student, teacher, labels = problem((20, 12), torch.float64, device)
    target, others = (ours(student, teacher, labels, 2.0, *weights) for weights in ((1.0, 0.0), (0.0, 1.0)))
    rest = 1.0 - F.softmax(teacher / 2.0, -1).gather(1, labels[:, None])[:, 0]
    whole = af.kl_div(student, teacher, 2.0, scale_by_t2=False, reduction="none")
    torch.testing.assert_close(target + rest * others, whole, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("weight", [None, 0.7, "tensor"])
@pytest.mark.parametrize("labels_dtype", [torch.int64, torch.int32])
def test_reductions_weights_and_t2(backend, device, reduction, weight, labels_dtype):
    student, teacher, labels = problem((3, 4, 6), torch.float64, device)
    weight = torch.rand(3, 4, dtype=torch.float64, device=device) if weight == "tensor" else weight
    rows = public(student, teacher, labels, 2.0, 1.0, 8.0) * 4.0 * (1.0 if weight is None else weight)
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.mean(), "batchmean": rows.sum() / 3}[reduction]
    actual = af.dkd_loss(student, teacher, labels.to(labels_dtype), 2.0, weight=weight, reduction=reduction)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_gradient_carries_weights_and_upstream(backend, device):
    student, teacher, labels = problem((6, 9), torch.float64, device)
    student.requires_grad_()
    weight = torch.rand(6, dtype=torch.float64, device=device)
    upstream = torch.rand(12, dtype=torch.float64, device=device)[::2]
    expected = torch.autograd.grad(16.0 * weight * public(student, teacher, labels, 4.0, 1.0, 8.0), student, upstream)
    actual = torch.autograd.grad(
        af.dkd_loss(student, teacher, labels, weight=weight, reduction="none"), student, upstream
    )
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (5,), (2, 3, 5), (1, 50)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
def test_any_leading_shape(backend, device, shape, reduction):
    student, teacher, labels = problem(shape, device=device)
    student.requires_grad_()
    loss = af.dkd_loss(student, teacher, labels, 2.0, reduction=reduction)
    loss.sum().backward()
    assert loss.shape == (shape[:-1] if reduction == "none" else ())
    assert student.grad.shape == shape
    expected = public(student.detach().double(), teacher.double(), labels, 2.0, 1.0, 8.0) * 4
    if reduction in ("none", "sum"):
        torch.testing.assert_close(loss.sum().double(), expected.sum(), rtol=1e-5, atol=1e-6)
    assert torch.isfinite(loss).all()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "every_other", "expanded", "shifted"])
@pytest.mark.parametrize("classes", [10, 70])
def test_any_strides(backend, device, layout, classes):
    student, teacher, labels = problem((6, classes), device=device)
    make = {
        "transposed": lambda x: x.t().contiguous().t(),
        "sliced": lambda x: F.pad(x, (3, 2))[:, 3:-2],
        "every_other": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
        "expanded": lambda x: x[:1].expand(6, classes),
        "shifted": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(6, classes),
    }[layout]
    student, teacher = make(student), make(teacher)
    expected = rows_and_grad(ours, student.contiguous(), teacher.contiguous(), labels)
    found = rows_and_grad(ours, student, teacher, labels.repeat_interleave(2)[::2])
    for value, other in zip(found, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-6, atol=1e-7)


def test_mixed_dtypes_meet_in_the_common_one(backend, device):
    student, teacher, labels = problem((4, 6), torch.bfloat16, device)
    student = student.detach().requires_grad_()
    loss = af.dkd_loss(student, teacher.float(), labels)
    loss.backward()
    assert student.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, af.dkd_loss(student.detach().float(), teacher.float(), labels))


# ---- few classes, masks and values that are no numbers --------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 2])
def test_no_others_or_one_have_no_divergence_among_themselves(backend, device, classes):
    student, teacher, labels = problem((20, classes), device=device)
    rows, grad = rows_and_grad(ours, student, teacher, labels, 2.0, 0.0, 1.0)
    assert (rows == 0).all()
    assert (grad == 0).all()
    rows, grad = rows_and_grad(ours, student, teacher, labels, 2.0, 1.0, 1.0)
    assert (rows == 0).all() == (classes == 1)
    assert (grad == 0).all() == (classes == 1)


@pytest.mark.parametrize("classes", [7, 100, 5000])
def test_masked_classes_are_as_if_absent(backend, device, classes):
    student, teacher, _ = problem((4, classes), device=device)
    kept = torch.arange(classes, device=device) % 3 != 1
    labels = torch.tensor([0, 1, 2, 3], device=device)  # among those that are kept
    expected, expected_grad = rows_and_grad(ours, student[:, kept], teacher[:, kept], labels)
    masked = [x.masked_fill(~kept, -INF) for x in (student, teacher)]
    rows, grad = rows_and_grad(ours, *masked, kept.nonzero()[labels, 0])
    torch.testing.assert_close(rows, expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(grad[:, kept], expected_grad, rtol=1e-5, atol=1e-7)
    assert (grad[:, ~kept] == 0).all()


@pytest.mark.parametrize("classes", [7, 100])
def test_masked_target_leaves_the_others(backend, device, classes):
    student, teacher, labels = problem((4, classes), device=device)
    chosen = F.one_hot(labels, classes).bool()
    masked = [x.masked_fill(chosen, -INF) for x in (student, teacher)]
    rows, grad = rows_and_grad(ours, *masked, labels, 3.0, 1.0, 1.0)
    others, others_grad = rows_and_grad(ours, student, teacher, labels, 3.0, 0.0, 1.0)
    torch.testing.assert_close(rows, others)
    torch.testing.assert_close(grad, others_grad)


@pytest.mark.parametrize("classes", [6, 90])
def test_rows_that_lack_classes(backend, device, classes):
    student, teacher, _ = problem((5, classes), device=device)
    labels = torch.zeros(5, dtype=torch.int64, device=device)
    student[1, 1:], teacher[1, 1:] = -INF, -INF  # the target alone, as with one class
    student[2], teacher[2] = -INF, -INF  # no class at all
    student[3, 1:] = -INF  # others of one network
    rows, grad = rows_and_grad(ours, student, teacher, labels)
    assert rows[1] == 0
    assert (grad[1] == 0).all()
    assert rows[[2, 3]].isnan().all()
    assert torch.isfinite(rows[[0, 4]]).all()
    assert torch.isfinite(grad[[0, 4]]).all()


@pytest.mark.parametrize("column", [0, 4])
def test_class_that_only_the_student_excludes_is_infinitely_wrong(backend, device, column):
    student, teacher, labels = problem((3, 9), device=device)
    labels[1] = 0
    student[1, column] = -INF
    rows = ours(student, teacher, labels, 1.0, 1.0, 1.0)
    assert rows[1] == INF
    assert torch.isfinite(rows[[0, 2]]).all()


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("network", [0, 1])
@pytest.mark.parametrize("where", ["target", "others"])
@pytest.mark.parametrize("classes", [9, 3000])
def test_bad_logit_poisons_its_row_alone(backend, device, value, network, where, classes):
    *pair, labels = problem((5, classes), device=device)
    clean = rows_and_grad(ours, *pair, labels)
    column = classes // 2
    labels[2] = column if where == "target" else column + 1
    clean = rows_and_grad(ours, *pair, labels)
    pair = [x.clone() for x in pair]
    pair[network][2, column] = value
    rows, grad = rows_and_grad(ours, *pair, labels)
    others = [0, 1, 3, 4]
    assert rows[2].isnan()
    assert grad[2].isnan().any()
    assert torch.equal(rows[others], clean[0][others])
    assert torch.equal(grad[others], clean[1][others])


def test_equal_networks_have_no_divergence(backend, device):
    student, _, labels = problem((16, 50), device=device)
    rows, grad = rows_and_grad(ours, student, student.clone(), labels)
    assert rows.abs().max() < 1e-6
    assert grad.abs().max() < 1e-7


# ---- autograd -------------------------------------------------------------------------------------------------------


def test_second_backward_of_one_graph_gives_the_same(backend, device):
    student, teacher, labels = problem((8, 20), device=device)
    student.requires_grad_()
    loss = af.dkd_loss(student, teacher, labels)
    (first,) = torch.autograd.grad(loss, student, retain_graph=True)
    (second,) = torch.autograd.grad(loss, student, 3.0 * torch.ones_like(loss))
    torch.testing.assert_close(second, 3.0 * first, rtol=1e-5, atol=1e-8)


def test_double_backward(backend, device):
    student, teacher, labels = problem((3, 5), torch.float64, device)
    pair = (student.requires_grad_(), teacher.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda s, t: af.dkd_loss(s, t, labels, 2.0), pair)


def test_nothing_of_the_logits_size_is_saved(backend, device):
    if backend == "reference":
        pytest.skip("the reference is plain autograd")
    student, teacher, labels = problem((64, 50), device=device)
    student.requires_grad_()
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        af.dkd_loss(student, teacher, labels)
    inputs = {student.data_ptr(), teacher.data_ptr(), labels.data_ptr()}
    assert inputs <= {tensor.data_ptr() for tensor in saved}
    assert sum(tensor.numel() for tensor in saved if tensor.data_ptr() not in inputs) <= 8 * 64


def test_inputs_stay_as_they_are(backend, device):
    student, teacher, labels = problem((8, 20), device=device)
    before = student.clone(), teacher.clone(), labels.clone()
    student.requires_grad_()
    af.dkd_loss(student, teacher, labels).backward()
    for now, then in zip((student, teacher, labels), before, strict=True):
        assert torch.equal(now, then)


def test_every_element_of_the_outputs_is_written(backend, device):
    torch.use_deterministic_algorithms(True)  # new tensors are filled with NaN
    try:
        assert torch.empty_strided((4,), (1,), device=device).isnan().all()
        for shape in [(5, 3), (128, 100), (3, 4097), (1, 40000)]:
            student, teacher, labels = problem(shape, device=device)
            for reduction in ("mean", "none"):
                student = student.detach().requires_grad_()
                loss = af.dkd_loss(student, teacher, labels, reduction=reduction)
                loss.sum().backward()
                assert torch.isfinite(loss).all()
                assert torch.isfinite(student.grad).all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("shape", [(999, 20), (200, 300)], ids=str)
def test_same_bits_on_a_second_run_and_on_other_threads(backend, device, shape):
    threads = torch.get_num_threads()
    student, teacher, labels = problem(shape, device=device)
    runs = []
    try:
        for count in (threads, threads, 1):
            torch.set_num_threads(count)
            runs.append((af.dkd_loss(student, teacher, labels), *rows_and_grad(ours, student, teacher, labels)))
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
        loss = af.dkd_loss(student, torch.zeros(4, 10, device=device), torch.arange(4, device=device), 2.0)
    loss.backward()
    assert student.dtype == dtype
    assert loss.dtype == torch.float32
    assert torch.isfinite(layer.weight.grad).all()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(backend, device, dynamic):
    student, teacher, labels = problem((12, 9), device=device)
    weight = torch.rand(12, device=device)

    def objective(s, t):
        rows = af.dkd_loss(s * 1.5, t, labels, 2.0, reduction="none")
        return af.dkd_loss(s, t, labels, weight=weight) + rows.square().mean()

    results = []
    torch._dynamo.reset()
    # The backend under test is what is compiled; code generation around it is torch's own affair.
    for function in (objective, torch.compile(objective, fullgraph=True, dynamic=dynamic, backend="aot_eager")):
        leaf = student.clone().requires_grad_()
        loss = function(leaf, teacher)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_operators_keep_the_rules_of_torch(backend, device):
    if backend == "reference":
        pytest.skip("the reference has no operators")
    from amkd_fast.ops.kl import decoupled

    student, teacher, labels = problem((6, 9), device=device)
    af.dkd_loss(student, teacher, labels)  # makes the operators known
    forward, backward = decoupled._OPERATORS[backend]
    tests = ("test_schema", "test_faketensor")
    for per_row, weight in ((False, torch.rand(6, device=device)), (True, None)):
        scalars = (2.0, 1.0, 8.0, 0.1, per_row)
        inputs = (student, teacher, labels, weight)
        torch.library.opcheck(forward, (*inputs, *scalars), test_utils=tests)
        loss, stats = forward(*inputs, *scalars)
        torch.library.opcheck(backward, (torch.ones_like(loss), *inputs, stats, *scalars), test_utils=tests)


def test_module_is_the_function(backend, device):
    student, teacher, labels = problem((6, 9), device=device)
    options = {"target_weight": 0.5, "other_weight": 2.0, "scale_by_t2": False, "reduction": "sum"}
    found = af.DKDLoss(3.0, **options)(student, teacher, labels, 0.7)
    assert torch.equal(found, af.dkd_loss(student, teacher, labels, 3.0, weight=0.7, **options))


# ---- any input that keeps the rules ---------------------------------------------------------------------------------


@st.composite
def problems(draw):
    rows, classes = draw(st.integers(0, 9)), draw(st.integers(1, 70))
    dtype, seed, shift = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)), draw(st.sampled_from([0, 50]))
    student, teacher, labels = problem((rows, classes), dtype, seed=seed, shift=shift)
    masked = torch.tensor(draw(st.lists(st.booleans(), min_size=classes, max_size=classes)), dtype=torch.bool)
    masked[draw(st.integers(0, classes - 1))] = False
    student, teacher = student.masked_fill(masked, -INF), teacher.masked_fill(masked, -INF)
    if draw(st.booleans()):
        student = student.t().contiguous().t()
    if draw(st.booleans()):
        teacher = F.pad(teacher, (1, 2))[:, 1:-2]
    return student, teacher, labels, draw(st.sampled_from([0.5, 1.0, 4.0]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(problems())
def test_any_shape_dtype_stride_and_mask(backend, device, drawn):
    student, teacher, labels, temperature = drawn
    with backends.backend("reference"):
        truth = rows_and_grad(ours, student.double(), teacher.double(), labels, temperature)
    found = rows_and_grad(ours, student.to(device), teacher.to(device), labels.to(device), temperature)
    step = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[student.dtype]
    exact = 1e-12 if student.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found[0].double().cpu(), truth[0], rtol=exact, atol=exact)
    torch.testing.assert_close(found[1].double().cpu(), truth[1], rtol=step, atol=exact)


# ---- refusals -------------------------------------------------------------------------------------------------------

S = torch.zeros(3, 4)
Y = torch.tensor([0, 1, 3])
REFUSED = {
    "temperature=0.0": (ValueError, lambda: af.dkd_loss(S, S, Y, 0.0)),
    "temperature is a Tensor": (TypeError, lambda: af.dkd_loss(S, S, Y, torch.tensor(2.0))),
    "temperature is a bool": (TypeError, lambda: [af.dkd_loss(S, S, Y, value) for value in (1.0, True)]),  # equal, yet
    "target_weight=nan": (ValueError, lambda: af.dkd_loss(S, S, Y, target_weight=math.nan)),
    "other_weight is a Tensor": (TypeError, lambda: af.dkd_loss(S, S, Y, other_weight=torch.ones(3))),
    "reduction='avg'": (ValueError, lambda: af.dkd_loss(S, S, Y, reduction="avg")),
    "weight=inf": (ValueError, lambda: af.dkd_loss(S, S, Y, weight=INF)),
    "weight.shape=(4,)": (ValueError, lambda: af.dkd_loss(S, S, Y, weight=torch.ones(4))),
    "student is a list": (TypeError, lambda: af.dkd_loss([0.0], S, Y)),
    "student.shape=(3, 0)": (ValueError, lambda: af.dkd_loss(S[:, :0], S[:, :0], Y)),
    "teacher.shape=(3, 3)": (ValueError, lambda: af.dkd_loss(S, S[:, :3], Y)),
    "labels is a NoneType": (TypeError, lambda: af.dkd_loss(S, S, None)),
    "labels.shape=(2,)": (ValueError, lambda: af.dkd_loss(S, S, Y[:2])),
    "labels.dtype=torch.float32": (TypeError, lambda: af.dkd_loss(S, S, torch.zeros(3))),
    "labels.device=meta": (ValueError, lambda: af.dkd_loss(S, S, Y.to("meta"))),
    "other_weight=inf": (ValueError, lambda: af.DKDLoss(other_weight=INF)),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused_by_name(message):
    error, call = REFUSED[message]
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("label", [4, -1, -100])
@pytest.mark.parametrize("classes", [4, 50])
def test_label_out_of_range(backend, device, label, classes):
    label = classes if label == 4 else label
    student, teacher, labels = problem((3, classes), device=device)
    labels[1] = label
    if device.type == "cpu":
        with pytest.raises(ValueError, match=rf"labels\[1\]={label}: must be from 0 to {classes - 1}$"):
            af.dkd_loss(student, teacher, labels)
    else:
        rows, grad = rows_and_grad(ours, student, teacher, labels)
        assert rows.isnan().tolist() == [False, True, False]
        assert grad.isnan().any(1).tolist() == [False, True, False]


def test_unconfirmed_cuda_kernel_is_not_taken_unasked(monkeypatch):
    monkeypatch.setitem(backends._UNUSABLE, "cuda", "")
    assert backends.select("kl", "cuda", 1) == "cuda"
    if "dkd_loss" in backends.UNCONFIRMED:
        assert backends.select("kl", "cuda", 1, function="dkd_loss") != "cuda"
