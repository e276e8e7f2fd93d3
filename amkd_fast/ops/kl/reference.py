"""The KL family in plain PyTorch: the definition that every kernel is tested against (docs/methods.md, Divergences).

Differentiable any number of times, in the student, the teacher and the weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amkd_fast.ops.kl.scalars import DIVERGENCES, REDUCTIONS, Scalars
from amkd_fast.ops.row_loss import statistics_dtype


def loss(
    student: Tensor, teacher: Tensor, weight: Tensor | None, labels: Tensor | None, ce_weight: Tensor | None, s: Scalars
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, mean cross-entropy, mean divergence) of the operators' arguments; the last two without a graph."""
    call = (s.temperature, DIVERGENCES[s.divergence], s.beta)
    weight, ce_weight = to_save(weight), to_save(ce_weight)

    def divergence(hidden: Tensor | None) -> Tensor:  # [B]
        of_rows = row_divergence(without(hidden, student), without(hidden, teacher), *call)
        return s.row_scale * without(hidden, of_rows)

    hidden = None if weight is None else weight == 0
    rows = divergence(hidden)
    weighted = rows if s.kl_factor != 0 else divergence(every_row(student))
    weighted = reduced(s.kl_factor * (weighted if weight is None else weighted * weight), s.reduction)
    mean_divergence = reduced(rows.detach(), REDUCTIONS.index("mean"))
    if labels is None:
        return weighted, rows.new_zeros(()), mean_divergence

    def cross_entropy(hidden: Tensor) -> Tensor:  # [B]
        return without(hidden, row_cross_entropy(without(hidden, student), labels, s.ignore_index))

    ignored = labels == s.ignore_index
    hidden = ignored if ce_weight is None else ignored | (ce_weight == 0)
    rows = cross_entropy(hidden)
    labelled = (~ignored).sum().clamp(min=1).to(rows.dtype)
    weighted_ce = rows if s.ce_factor != 0 else cross_entropy(every_row(student))
    weighted_ce = s.ce_factor * (weighted_ce if ce_weight is None else weighted_ce * ce_weight)
    return weighted + weighted_ce.sum() / labelled, rows.detach().sum() / labelled, mean_divergence


def reduced(rows: Tensor, reduction: int) -> Tensor:
    """By its number; the mean of no rows is 0."""
    if REDUCTIONS[reduction] == "none":
        return rows
    return rows.sum() / max(rows.shape[0], 1) if REDUCTIONS[reduction] == "mean" else rows.sum()


def row_divergence(
    student: Tensor, teacher: Tensor, temperature: float | Tensor, divergence: str, beta: float
) -> Tensor:
    """Divergence of every row, [..., K] and [..., K] → [...], without T² and weights."""
    a = log_probabilities(student, temperature)  # [..., K]
    c = log_probabilities(teacher, temperature)  # [..., K]
    q, p = a.exp(), c.exp()
    if divergence == "forward":
        terms = times(p, c - a)
    elif divergence == "reverse":
        terms = times(q, a - c)
    elif divergence == "soft_cross_entropy":
        terms = times(p, -a)
    else:
        # A class that both distributions exclude has no mixture to compare with; zeros keep its gradient finite.
        excluded = (p == 0) & (q == 0)
        a, c = a.masked_fill(excluded, 0.0), c.masked_fill(excluded, 0.0)
        log_m = torch.logaddexp(c + math.log(beta), a + math.log1p(-beta))
        terms = beta * times(p, c - log_m) + (1.0 - beta) * times(q, a - log_m)
    return terms.sum(-1)


def row_cross_entropy(student: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy of every row at temperature 1, [B, K] and [B] → [B].

    It is 0 where the label is ignored and NaN where it is out of range.
    """
    classes = student.shape[-1]
    chosen = labels.long().clamp(0, classes - 1).unsqueeze(-1)
    rows = -log_probabilities(student, 1.0).gather(-1, chosen).squeeze(-1)
    rows = rows.masked_fill((labels < 0) | (labels >= classes), float("nan"))
    return rows.masked_fill(labels == ignore_index, 0.0)


def without(hidden: Tensor | None, rows: Tensor) -> Tensor:
    """[B, ...] with zeros in the rows that are ``hidden`` [B]: there nothing is read, and 0 times NaN is NaN."""
    return rows if hidden is None else rows.masked_fill(hidden.view(-1, *(1,) * (rows.dim() - 1)), 0.0)


def to_save(weight: Tensor | None) -> Tensor | None:
    """The weight, which a product saves: a copy of one that was made under ``torch.inference_mode``."""
    if weight is None or torch.compiler.is_compiling() or not weight.is_inference():
        return weight
    return weight.clone()


def every_row(logits: Tensor) -> Tensor:
    """What hides all of them."""
    return torch.ones_like(logits[:, 0], dtype=torch.bool)


def log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """log σ(z/T) in at least fp32; T is a number, or a tensor [] or one a row."""
    z = logits.to(statistics_dtype(logits.dtype))
    # Subtracting the maximum before dividing keeps the low digits of logits with a large common offset.
    z = z - z.detach().amax(-1, keepdim=True)
    if not isinstance(temperature, Tensor):
        return (z / temperature).log_softmax(-1)
    excluded = z == -math.inf  # whose quotient's derivative in T would be NaN
    z = z.masked_fill(excluded, 0.0) / temperature.to(z.dtype).unsqueeze(-1)
    return z.masked_fill(excluded, -math.inf).log_softmax(-1)


def times(probability: Tensor, factor: Tensor) -> Tensor:
    """The product, with 0·inf = 0: a class of probability 0 contributes nothing."""
    return probability * factor.masked_fill(probability == 0, 0.0)
