"""Relational distillation in PyTorch's own functions, as the public code has it: distances and cosines in full."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def expanded(student: Tensor, teacher: Tensor) -> Tensor:
    """Distances by expanded squares with the diagonal set to 0, as in the public code."""

    def relative(rows: Tensor) -> Tensor:
        square = rows.square().sum(1)
        distances = (square[:, None] + square - 2 * rows @ rows.mT).clamp(min=1e-12).sqrt()
        distances = distances * (1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device))
        return distances / (distances.sum() / (distances > 0).sum())

    return F.smooth_l1_loss(relative(student), relative(teacher))


def cdist(student: Tensor, teacher: Tensor) -> Tensor:
    def relative(rows: Tensor) -> Tensor:
        distances = torch.cdist(rows, rows)
        return distances / (distances.sum() / (distances > 0).sum())

    return F.smooth_l1_loss(relative(student), relative(teacher))


def triples(student: Tensor, teacher: Tensor) -> Tensor:
    """The public code's angles: unit vectors of all pairs [B, B, D], cosines of all triples [B, B, B]."""

    def cosines(rows: Tensor) -> Tensor:
        unit = F.normalize(rows[None] - rows[:, None], dim=2)
        return torch.bmm(unit, unit.mT)

    return F.smooth_l1_loss(cosines(student), cosines(teacher))
