"""The relations family in plain PyTorch: the definition that every kernel is tested against.

Differentiable any number of times, in the student and the teacher. Sums over pairs and triples are in fp64.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from amkd_fast.ops.row_loss import statistics_dtype as statistics_dtype


def distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-l1 between the distances of all pairs, each side's over their mean; [B, D_s] and [B, D_t] → []."""
    errors = _sum_of_errors(_relative_distances(student), _relative_distances(teacher))
    return errors / max(student.shape[0] ** 2, 1)


def angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Smooth-l1 between the cosines of all triangles' angles; [B, D_s] and [B, D_t] → []."""
    student, teacher = _wide(student), _wide(teacher)
    rows = student.shape[0]
    if torch.compiler.is_compiling():  # which would write a loop out, for one number of rows
        total = _sum_of_errors(_angles(student, slice(None)), _angles(teacher, slice(None)))
    else:
        total = student.new_zeros((), dtype=torch.float64)
        for i in range(rows):
            total = total + _sum_of_errors(_angles(student, slice(i, i + 1)), _angles(teacher, slice(i, i + 1)))
    return total / max(rows**3, 1)


def loss(student: Tensor, teacher: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
    """The weighted sum of both; a weight of 0 leaves its part out."""
    with _full_precision(student):
        total = 0.0 * (_wide(student).sum() + _wide(teacher).sum()).double()  # has a graph, whatever is left out
        if distance_weight != 0:
            total = total + distance_weight * distance_loss(student, teacher)
        if angle_weight != 0:
            total = total + angle_weight * angle_loss(student, teacher)
    return total.to(statistics_dtype(student.dtype))


def _full_precision(rows: Tensor):
    """Autocast would round the products; tensors without values know none."""
    return nullcontext() if rows.is_meta else torch.autocast(rows.device.type, enabled=False)


def _wide(rows: Tensor) -> Tensor:
    return rows.to(statistics_dtype(rows.dtype)).contiguous()


def _sum_of_errors(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(student, teacher, reduction="none").sum(dtype=torch.float64)


def _relative_distances(rows: Tensor) -> Tensor:
    """[B, B], over the mean of those that are not 0; in fp64, which squares of fp32 cannot leave."""
    rows = rows.double().contiguous()
    distances, apart = _length(rows[:, None] - rows)
    count = apart.sum()
    mean = distances.sum(dtype=torch.float64) / count.clamp(min=1)
    return distances / torch.where(count > 0, mean, 1.0).to(rows.dtype)


def _angles(rows: Tensor, at: slice) -> Tensor:
    """Cosines of the angles at some of the rows, [n, B, B]."""
    differences = rows - rows[at, None]  # [n, B, D]
    length, apart = _length(differences)
    unit = torch.where(apart[..., None], differences / torch.where(apart, length, 1.0)[..., None], 0.0)
    return unit @ unit.mT


def _length(differences: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean length over the last dimension, with derivative 0 where it is 0, and where it is not."""
    squared = differences.square().sum(-1)
    apart = squared != 0  # a NaN is
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0), apart
