"""Decoupled knowledge distillation in plain PyTorch: the definition that every kernel is tested against.

Differentiable any number of times, in the student and the teacher.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from amkd_fast.ops.kl.reference import every_row, log_probabilities, reduced, times, to_save, without


class Scalars(NamedTuple):
    """The numbers of one call, in the order in which the operators take them."""

    temperature: float
    target_factor: float  # weight of the target's divergence in a row, with T²
    other_factor: float  # of the others'
    factor: float  # weight of the rows
    reduction: int


def loss(student: Tensor, teacher: Tensor, labels: Tensor, weight: Tensor | None, s: Scalars) -> Tensor:
    """The loss of the operators' arguments."""
    weight = to_save(weight)
    hidden = every_row(student) if s.factor == 0 else None if weight is None else weight == 0
    pair = (without(hidden, z) for z in (student, teacher))
    target, others = row_divergences(*pair, labels, s.temperature)
    rows = without(hidden, s.factor * (s.target_factor * target + s.other_factor * others))
    return reduced(rows if weight is None else rows * weight, s.reduction)


def row_divergences(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The target's and the others' divergence of every row, [B, K], [B, K] and [B] → twice [B], without T².

    Both are NaN where the label is out of range. A row whose only class is the target has no others: 0.
    """
    classes = student.shape[-1]
    label = labels.long().clamp(0, classes - 1).unsqueeze(-1)  # [B, 1]
    chosen = torch.arange(classes, device=labels.device) == label  # [B, K]
    alone = (chosen | ((student == -math.inf) & (teacher == -math.inf))).all(-1, keepdim=True)  # [B, 1]

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        """The log-odds of the target [B] and the logarithms of the others' own distribution [B, K]."""
        every = log_probabilities(logits, temperature)
        # Zeros in place of a distribution that is not there are equal in both networks and keep the gradient finite.
        rest = every.masked_fill(chosen, -math.inf).masked_fill(alone, 0.0).logsumexp(-1)
        others = logits.masked_fill(chosen, -math.inf).masked_fill(alone, 0.0)
        return every.gather(-1, label).squeeze(-1) - rest, log_probabilities(others, temperature)

    (odds_s, others_s), (odds_t, others_t) = parts(student), parts(teacher)
    target = times(odds_t.sigmoid(), F.logsigmoid(odds_t) - F.logsigmoid(odds_s))
    rest = times((-odds_t).sigmoid(), F.logsigmoid(-odds_t) - F.logsigmoid(-odds_s))
    others = times(others_t.exp(), others_t - others_s).sum(-1)
    unknown = (labels < 0) | (labels >= classes)
    return (target + rest).masked_fill(unknown, math.nan), others.masked_fill(unknown, math.nan)
