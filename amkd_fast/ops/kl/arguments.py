"""What the functions of the KL family make of their arguments, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import checks
from amkd_fast.ops.kl.reference import statistics_dtype


def logits_of(student: Tensor, teacher: Tensor) -> tuple[torch.Size, Tensor, Tensor]:
    """Check both logits; return their shape and the two of them as [B, K] in one dtype."""
    checks.floating("student", student)
    checks.floating("teacher", teacher)
    shape = student.shape
    if len(shape) == 0 or shape[-1] == 0:
        raise ValueError(f"student.shape={tuple(shape)}: must be [..., K] with at least one class")
    if teacher.shape != shape:
        checks.shape("teacher", teacher, tuple(shape), "the shape of student")
    if teacher.device != student.device:
        checks.same_device(student=student, teacher=teacher)
    if student.dtype != teacher.dtype:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        student, teacher = student.to(dtype), teacher.to(dtype)
    if len(shape) != 2:
        student, teacher = student.reshape(-1, shape[-1]), teacher.reshape(-1, shape[-1])
    return shape, student, teacher


def weight_of(
    name: str, weight: float | Tensor | None, shape: torch.Size, student: Tensor
) -> tuple[float | None, Tensor | None]:
    """Tell a number, which is yet to be checked, from a tensor, which becomes [B] in the statistics' dtype."""
    if not isinstance(weight, Tensor):
        return weight, None
    checks.floating(name, weight)
    checks.shape(name, weight, tuple(shape[:-1]), "one weight a row of student")
    checks.same_device(student=student, **{name: weight})
    return None, weight.reshape(-1).to(statistics_dtype(student.dtype))
