"""What is special to decoupled distillation: its two parts, few classes, targets that are certain or masked."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases.kl import decoupled_rows as public
from cases.kl import logits
from cases.operation import relative_error

import amkd_fast as af
from amkd_fast import backends

OPERATION = "kl"
INF = math.inf


def problem(shape, dtype=torch.float32, device="cpu", seed=0):
    """Logits of student and teacher, and labels."""
    labels = torch.randint(shape[-1], shape[:-1], generator=torch.Generator().manual_seed(seed))
    return *(x.to(device).clone() for x in logits(shape, dtype, seed)), labels.to(device)


def ours(student, teacher, labels, temperature, target_weight, other_weight):
    options = {"target_weight": target_weight, "other_weight": other_weight}
    return af.dkd_loss(student, teacher, labels, temperature, scale_by_t2=False, reduction="none", **options)


def rows_and_grad(rows_of, student, teacher, labels, temperature=3.0, target_weight=1.0, other_weight=2.0):
    student = student.detach().clone().requires_grad_()
    rows = rows_of(student, teacher, labels, temperature, target_weight, other_weight)
    rows.sum().backward()
    return rows.detach(), student.grad


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)], ids=["target", "others"])
def test_each_part_alone(backend, device, weights):
    student, teacher, labels = problem((64, 30))
    truth = rows_and_grad(public, student.double(), teacher.double(), labels, 2.0, *weights)
    eager = rows_and_grad(public, student, teacher, labels, 2.0, *weights)
    found = rows_and_grad(ours, student.to(device), teacher.to(device), labels.to(device), 2.0, *weights)
    for value, rival, exact, factor in zip(found, eager, truth, (2.0, 3.0), strict=True):
        assert relative_error(value, exact) <= max(factor * relative_error(rival, exact), 6e-8)


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


def test_parts_make_up_the_whole_divergence(backend, device):
    """KL(p_t‖p_s) = KL(b_t‖b_s) + (1 − p_y) KL(p̂_t‖p̂_s), which is what the method decouples."""
    student, teacher, labels = problem((20, 12), torch.float64, device)
    target, others = (ours(student, teacher, labels, 2.0, *weights) for weights in ((1.0, 0.0), (0.0, 1.0)))
    rest = 1.0 - F.softmax(teacher / 2.0, -1).gather(1, labels[:, None])[:, 0]
    whole = af.kl_div(student, teacher, 2.0, scale_by_t2=False, reduction="none")
    torch.testing.assert_close(target + rest * others, whole, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("classes", [1, 2])
def test_no_others_or_one_have_no_divergence_among_themselves(backend, device, classes):
    student, teacher, labels = problem((20, classes), device=device)
    rows, grad = rows_and_grad(ours, student, teacher, labels, 2.0, 0.0, 1.0)
    assert (rows == 0).all()
    assert (grad == 0).all()
    rows, grad = rows_and_grad(ours, student, teacher, labels, 2.0, 1.0, 1.0)
    assert (rows == 0).all() == (classes == 1)
    assert (grad == 0).all() == (classes == 1)


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


@pytest.mark.parametrize("where", ["target", "others"])
def test_bad_logit_poisons_its_row_alone_wherever_it_stands(backend, device, where):
    *pair, labels = problem((5, 9), device=device)
    labels[2] = 4 if where == "target" else 5
    clean = rows_and_grad(ours, *pair, labels)
    for network in range(2):
        bad = [x.clone() for x in pair]
        bad[network][2, 4] = math.nan
        rows, grad = rows_and_grad(ours, *bad, labels)
        others = [0, 1, 3, 4]
        assert rows[2].isnan()
        assert grad[2].isnan().any()
        assert torch.equal(rows[others], clean[0][others])
        assert torch.equal(grad[others], clean[1][others])
