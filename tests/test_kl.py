"""What is special to losses of rows of logits: reductions, leading dimensions, masks, labels, extreme rows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases import kl
from cases.operation import DTYPES, relative_error, wide
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import amkd_fast as af
from amkd_fast import backends

OPERATION = "kl"
INF = math.inf
LOSSES = [operation for operation in kl.OPERATIONS if operation.rows]
by_loss = pytest.mark.parametrize("operation", LOSSES, ids=str)
ROWS = {"reduction": "none", "scale_by_t2": False}


def draw(operation, shape, dtype=torch.float32, device="cpu", seed=0, **more):
    drawn = operation.draw(shape, dtype, seed, weight=False, **more)
    return {n: x.to(device) for n, x in drawn.items()}


# ---- reductions, shapes ---------------------------------------------------------------------------------------------


@by_loss
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "batchmean"])
@pytest.mark.parametrize("weight", [None, 0.7, "tensor"])
def test_reductions_weights_and_t2(backend, device, operation, reduction, weight):
    """By the docstrings' words, from rows that are not reduced; any leading shape; labels of 32 bits too."""
    drawn = draw(operation, (3, 4, 6), torch.float64, device)
    weight = torch.rand(3, 4, dtype=torch.float64, device=device) if weight == "tensor" else weight
    rows = operation.call(**drawn, **{**operation.options, **ROWS})
    assert rows.shape == (3, 4)
    if "labels" in drawn:
        drawn["labels"] = drawn["labels"].int()
    rows = rows * operation.options["temperature"] ** 2 * (1.0 if weight is None else weight)
    expected = {"none": rows, "sum": rows.sum(), "mean": rows.mean(), "batchmean": rows.sum() / 3}[reduction]
    options = {**operation.options, "scale_by_t2": True, "reduction": reduction}
    found = operation.call(**drawn, weight=weight, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@by_loss
@pytest.mark.parametrize("shape", [(5,), (2, 3, 5), (1, 50)], ids=str)
def test_any_leading_shape(backend, device, operation, shape):
    drawn = draw(operation, shape, torch.float64, device)
    found = operation.run(drawn, ROWS)
    assert found.outputs[0].shape == shape[:-1]
    rows = operation.run({n: x.reshape(-1, *x.shape[len(shape) - 1 :]) for n, x in drawn.items()}, ROWS)
    torch.testing.assert_close(found.outputs[0].flatten(), rows.outputs[0].flatten(), rtol=1e-14, atol=0)
    assert found.gradients["student"].shape == shape


def test_batchmean_is_that_of_torch(backend, device):
    student, teacher = (x.to(device) for x in kl.logits((6, 9), torch.float64))
    expected = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(af.kl_div(student, teacher), expected, rtol=1e-12, atol=0)


# ---- extreme rows ---------------------------------------------------------------------------------------------------


@by_loss
@pytest.mark.parametrize("shape", [(16, 10), (33, 1000)], ids=str)
def test_common_offset_of_1e4_costs_no_accuracy(backend, device, operation, shape):
    drawn = draw(operation, shape, shift=1e4)
    found = operation.run({n: x.to(device) for n, x in drawn.items()}, ROWS)
    truth = operation.expected(wide(drawn), ROWS)
    bound = 3e-6 if operation.name.startswith("standardised") else 1e-6  # whose deviation is of the offset's digits
    for value, exact in zip((*found.outputs, *found.gradients.values()), (*truth.outputs, *truth.gradients.values()),
                            strict=True):  # fmt: skip
        assert relative_error(value, exact) <= bound


@pytest.mark.parametrize("operation", LOSSES[:4], ids=str)
def test_longest_rows(backend, device, operation):
    drawn = draw(operation, (1, 262144))
    found = operation.run({n: x.to(device) for n, x in drawn.items()}, ROWS)
    truth = operation.expected(wide(drawn), ROWS)
    assert relative_error(found.outputs[0], truth.outputs[0]) <= 3e-6
    assert relative_error(found.gradients["student"], truth.gradients["student"]) <= 3e-6


@by_loss
def test_class_that_only_the_student_excludes_is_infinitely_wrong(backend, device, operation):
    """Where the loss weighs the student's logarithm with the teacher's probability."""
    if operation.name in ("kl_div reverse", "kl_div js"):
        pytest.skip("a probability of 0 costs nothing here")
    drawn = draw(operation, (3, 9), device=device)
    if "labels" in drawn:
        drawn["labels"].fill_(3)
    drawn["student"][1, 4] = -INF
    rows = operation.call(**drawn, **{**operation.options, **ROWS})
    assert rows[1] == INF
    assert torch.isfinite(rows[[0, 2]]).all()


@by_loss
def test_row_without_any_class_is_nan(backend, device, operation):
    drawn = draw(operation, (3, 6), device=device)
    drawn["student"][1], drawn["teacher"][1] = -INF, -INF
    found = operation.run(drawn, ROWS)
    assert found.outputs[0].isnan().tolist() == [False, True, False]
    assert torch.isfinite(found.gradients["student"][[0, 2]]).all()


@by_loss
def test_equal_networks_have_no_divergence(backend, device, operation):
    drawn = draw(operation, (16, 50), device=device)
    drawn["teacher"] = drawn["student"].clone()
    found = operation.run(drawn, ROWS)
    if operation.name != "soft_cross_entropy":  # which keeps the teacher's entropy
        assert found.outputs[0].abs().max() < 1e-6
    assert found.gradients["student"].abs().max() < 1e-7


@st.composite
def problems(draw):
    rows, classes = draw(st.integers(0, 9)), draw(st.integers(1, 70))
    dtype, seed, shift = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 50.0]))
    masked = torch.tensor(draw(st.lists(st.booleans(), min_size=classes, max_size=classes)), dtype=torch.bool)
    masked[draw(st.integers(0, classes - 1))] = False
    layouts = [draw(st.sampled_from([lambda x: x, lambda x: x.mT.contiguous().mT, lambda x: F.pad(x, (1, 2))[:, 1:-2]]))
               for _ in range(2)]  # fmt: skip
    return (rows, classes), dtype, seed, shift, masked, layouts, draw(st.sampled_from([0.5, 1.0, 4.0]))


@by_loss
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(problem=problems())
def test_any_shape_dtype_stride_and_mask(backend, device, operation, problem):
    shape, dtype, seed, shift, masked, layouts, temperature = problem
    drawn = operation.draw(shape, dtype, seed, weight=False, shift=shift)
    for name, layout in zip(("student", "teacher"), layouts, strict=True):
        drawn[name] = layout(drawn[name].masked_fill(masked, -INF))
    options = {**ROWS, "temperature": temperature}
    with backends.backend("reference"):
        truth = operation.run(wide(drawn), options)
    found = operation.run({n: x.to(device) for n, x in drawn.items()}, options)
    exact = {torch.float64: 1e-11 if operation.name.startswith("standardised") else 1e-12}.get(dtype, 1e-5)
    step = {torch.float64: exact, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(found.outputs[0].double().cpu(), truth.outputs[0], rtol=exact, atol=exact)
    # 1/s is a factor of the standardised gradient: logits of a narrow dtype that lie close together make it large.
    spread = truth.gradients["student"].abs().amax().clamp(min=1.0).item() if shape[0] else 1.0
    spread = spread if operation.name.startswith("standardised") else 1.0
    gradients = found.gradients["student"].double().cpu(), truth.gradients["student"]
    torch.testing.assert_close(*gradients, rtol=step, atol=exact * spread)


# ---- cross-entropy and labels ---------------------------------------------------------------------------------------


def test_no_labels_or_only_ignored_ones(backend, device):
    student, teacher = (x.to(device) for x in kl.logits((4, 5)))
    for labels in (None, torch.full((4,), -100, device=device)):
        loss = af.distillation_loss(student, teacher, labels)
        assert loss.ce == 0
        torch.testing.assert_close(loss.total, 0.9 * loss.kl)


@pytest.mark.parametrize("labels_dtype", [torch.int64, torch.int32])
def test_ignored_labels_and_parts_for_logging(backend, device, labels_dtype):
    student, teacher = (x.to(device) for x in kl.logits((6, 9), torch.float64))
    labels = torch.tensor([0, 8, -7, 3, -7, 1], device=device)
    loss = af.distillation_loss(
        student.requires_grad_(), teacher, labels.to(labels_dtype), temperature=3.0, ce_weight=0.2, kl_weight=0.7,
        ignore_index=-7,
    )  # fmt: skip
    torch.testing.assert_close(loss.ce, F.cross_entropy(student, labels, ignore_index=-7), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.kl, af.kl_div(student, teacher, 3.0, reduction="mean"), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.total, 0.2 * loss.ce + 0.7 * loss.kl, rtol=1e-12, atol=0)
    assert loss.total.requires_grad
    assert not loss.ce.requires_grad
    assert not loss.kl.requires_grad


def test_module_of_the_distillation_loss(backend, device):
    student, teacher = (x.to(device) for x in kl.logits((6, 9)))
    labels, options = torch.arange(6, device=device), {"temperature": 2.0, "ce_weight": 0.3, "kl_weight": 0.5}
    found = af.DistillationLoss(**options)(student, teacher, labels)
    assert all(map(torch.equal, found, af.distillation_loss(student, teacher, labels, **options)))


@pytest.mark.parametrize("loss", ["distillation_loss", "dkd_loss"])
@pytest.mark.parametrize("label", [4, 50, -1])
def test_label_out_of_range(backend, device, loss, label):
    """An error that costs nothing on a CPU; on a GPU, where looking would stall it, a row of NaN."""
    student, teacher = (torch.zeros(3, 4, device=device) for _ in range(2))
    labels = torch.tensor([0, label, 1], device=device)
    call = getattr(af, loss)
    if device.type == "cpu":
        with pytest.raises(ValueError, match=rf"labels\[1\]={label}: must be from 0 to 3"):
            call(student.requires_grad_(), teacher, labels)
    elif loss == "distillation_loss":
        assert call(student, teacher, labels).total.isnan()
    else:
        assert call(student, teacher, labels, reduction="none").isnan().tolist() == [False, True, False]


class Unused(torch.autograd.Function):
    """Passes a value on and no gradient back."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_no_gradient_arrives(backend, device):
    student = torch.zeros(3, 4, device=device, requires_grad=True)
    loss = af.distillation_loss(student, torch.zeros(3, 4, device=device), torch.tensor([0, 1, 2], device=device))
    Unused.apply(loss.total).backward()
    assert student.grad is None or not student.grad.any()


@pytest.mark.parametrize("function", ["dkd_loss", "consistency_kl", "standardised_kl_div"])
def test_unconfirmed_cuda_kernel_is_not_taken_unasked(monkeypatch, function):
    monkeypatch.setattr(backends, "_UNUSABLE", dict.fromkeys(backends.BACKENDS, ""))
    assert backends.select("kl", "cuda") == "cuda"
    if function not in backends.CONFIRMED:
        assert backends.select("kl", "cuda", function=function) == "triton"
    with backends.backend("cuda"):
        assert backends.select("kl", "cuda", function=function) == "cuda"
