"""What a user would write today for the KL family: eager PyTorch, in the dtype of its inputs.

In fp64 it is the truth that every backend is compared with; in the narrow dtypes it is the accuracy to beat.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

DIVERGENCES = ("forward", "reverse", "js", "soft_cross_entropy")


def rows(student, teacher, temperature, divergence, beta=0.5):
    """Divergence of every row, without T²."""
    a = F.log_softmax(student / temperature, -1)
    c = F.log_softmax(teacher / temperature, -1)
    if divergence == "forward":
        return F.kl_div(a, c, reduction="none", log_target=True).sum(-1)
    if divergence == "reverse":
        return F.kl_div(c, a, reduction="none", log_target=True).sum(-1)
    if divergence == "soft_cross_entropy":
        return -(c.exp() * a).sum(-1)
    log_m = torch.logaddexp(c + math.log(beta), a + math.log(1 - beta))
    return beta * (c.exp() * (c - log_m)).sum(-1) + (1 - beta) * (a.exp() * (a - log_m)).sum(-1)


def rows_and_grad(student, teacher, temperature, divergence, beta=0.5):
    """The rows and the gradient of their sum in the student."""
    student = student.detach().clone().requires_grad_()
    loss = rows(student, teacher, temperature, divergence, beta)
    loss.sum().backward()
    return loss.detach(), student.grad


def relative_error(value, truth):
    """‖value − truth‖ / ‖truth‖ in fp64; NaN anywhere is no match."""
    value, truth = value.detach().double().cpu(), truth.detach().double().cpu()
    return ((value - truth).norm() / truth.norm()).item()
