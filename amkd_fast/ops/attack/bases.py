"""Specification of the selection of boundary bases and of the draw of their targets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from amkd_fast import philox
from amkd_fast.ops.attack.objective import best_other


class BoundaryBases(NamedTuple):
    """Rows of a batch from which boundary samples are searched, padded to a fixed length M = ``limit``.

    Attributes:
        index: int64 [M], row in the batch; 0 in the padding.
        base: int64 [M], class to leave; 0 in the padding.
        target: int64 [M], class to reach; 0 in the padding.
        valid: bool [M], False in the padding. Valid rows come first, largest disagreement of the networks first.
    """

    index: Tensor
    base: Tensor
    target: Tensor
    valid: Tensor


def select_boundary_bases(
    student: Tensor, teacher: Tensor, labels: Tensor, limit: int, seed: int | Tensor
) -> BoundaryBases:
    """Keep the ``limit`` eligible rows on which the networks disagree most; draw a target for each."""
    work = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    student, teacher, labels = student.detach().to(work), teacher.detach().to(work), labels.long()
    difference = teacher.softmax(1) - student.softmax(1)  # [B, K]
    other = torch.arange(teacher.shape[1], device=labels.device) != labels[:, None]
    disagreement = torch.where(other, difference.square(), 0.0).sum(1)  # [B]
    eligible = (teacher.argmax(1) == labels) & (student.argmax(1) == labels) & torch.isfinite(disagreement)

    rank = torch.where(eligible, disagreement, -1.0)
    rank, index = rank.sort(descending=True, stable=True)
    rank, index = rank[:limit], index[:limit]
    valid = rank >= 0
    target = draw_targets(teacher, labels.clamp(0, teacher.shape[1] - 1), seed)
    rows = (torch.where(valid, column, 0) for column in (index, labels[index], target[index]))
    missing = limit - index.shape[0]
    return BoundaryBases(*(F.pad(column, (0, missing)) for column in rows), F.pad(valid, (0, missing)))


def draw_targets(logits: Tensor, base: Tensor, seed: int | Tensor, rows: Tensor | None = None) -> Tensor:
    """Draw k from σ(z)_k/(1 − σ(z)_base), k ≠ base, by inversion; row i takes number i of the seed's stream."""
    # A softmax over the other classes is the same distribution and survives a base that is nearly certain. float64
    # makes two devices that round differently disagree about once in 10¹⁵ draws.
    base = base.long()
    column = torch.arange(logits.shape[1], device=logits.device)
    others = logits.detach().double().masked_fill(column == base[:, None], -torch.inf)
    cumulative = others.softmax(1).cumsum(1)
    rows = torch.arange(logits.shape[0], device=logits.device) if rows is None else rows
    threshold = philox.uniform(seed, rows, dtype=torch.float64)[:, None] * cumulative[:, -1:]
    drawn = (cumulative <= threshold).sum(1)
    degenerate = ~(cumulative > threshold).any(1)
    return torch.where(degenerate, best_other(logits.detach(), base), drawn)
