"""What is special to the standardised KL divergence: scales and offsets do not matter, constant rows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cases.kl import logits as on_cpu
from cases.operation import DTYPES

import amkd_fast as af

OPERATION = "kl"


def logits(shape, dtype=torch.float32, device="cpu"):
    return [x.to(device).clone() for x in on_cpu(shape, dtype)]


def ours(student, teacher, temperature):
    return af.standardised_kl_div(student, teacher, temperature, scale_by_t2=False, reduction="none")


def rows_and_grad(function, student, teacher, temperature=2.0):
    student = student.detach().clone().requires_grad_()
    rows = function(student, teacher, temperature)
    rows.sum().backward()
    return rows.detach(), student.grad


def test_scale_and_offset_do_not_matter(backend, device):
    student, teacher = logits((20, 12), torch.float64, device)
    rows = ours(student, teacher, 2.0)
    torch.testing.assert_close(ours(100 * student - 7, 1e-3 * teacher + 5, 2.0), rows, rtol=1e-9, atol=1e-12)


def test_population_deviation_is_a_temperature(backend, device):
    student, teacher = logits((20, 12), torch.float64, device)
    u_s, u_t = (z / z.std(-1, correction=0, keepdim=True) / 2.0 for z in (student, teacher))
    expected = F.kl_div(u_s.log_softmax(-1), u_t.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(ours(student, teacher, 2.0 * math.sqrt(11 / 12)), expected, rtol=1e-9, atol=1e-13)


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
