"""What the functions of the KL family make of their arguments, checked."""

from __future__ import annotations

import torch
from torch import Tensor

from amkd_fast import backends, checks
from amkd_fast.ops.kl.reference import statistics_dtype
from amkd_fast.typing import Reduction

LEARNT = "a temperature that is a tensor is for the reference alone"


def logits_of(student: Tensor, teacher: Tensor, dim: int = -1) -> tuple[torch.Size, Tensor, Tensor]:
    """Check both logits; return their shape, classes last, and the two of them as [B, K] in one dtype."""
    checks.floating("student", student)
    checks.floating("teacher", teacher)
    shape = student.shape
    if dim != -1:
        _check_dim(dim, len(shape))
    if len(shape) == 0 or shape[dim] == 0:
        k = "[..., K]" if dim == -1 else f"K long in dimension {dim},"
        raise ValueError(f"student.shape={tuple(shape)}: must be {k} with at least one class")
    if teacher.shape != shape:
        checks.shape("teacher", teacher, tuple(shape), "the shape of student")
    if teacher.device != student.device:
        checks.same_device(student=student, teacher=teacher)
    if student.dtype != teacher.dtype:
        dtype = torch.promote_types(student.dtype, teacher.dtype)
        student, teacher = student.to(dtype), teacher.to(dtype)
    if dim != -1:
        student, teacher = student.movedim(dim, -1), teacher.movedim(dim, -1)
        shape = student.shape
    if len(shape) != 2:
        student, teacher = student.reshape(-1, shape[-1]), teacher.reshape(-1, shape[-1])
    return shape, student, teacher


def _check_dim(dim: object, dims: int) -> None:
    dim = checks.whole("dim", dim)
    if not -dims <= dim < dims:
        raise ValueError(f"dim={dim}: must be from {-dims} to {dims - 1}, a dimension of student")


def weight_of(
    name: str, weight: float | Tensor | None, mask: Tensor | None, shape: torch.Size, student: Tensor
) -> tuple[float | None, Tensor | None, Tensor | None]:
    """(number, weights [B], mask [...]) of a weight; a number is yet to be checked, a bool tensor is a mask."""
    if mask is not None:
        _check_mask("mask", mask, shape, student)
    if not isinstance(weight, Tensor):
        return weight, None, mask
    if weight.dtype == torch.bool:
        _check_mask(name, weight, shape, student)
        return None, None, weight if mask is None else mask & weight
    if weight.dim() == 0 and len(shape) > 1 and is_number(weight):
        return checks.finite(name, weight), None, mask
    checks.floating(name, weight)
    if weight.dim() == 0:
        weight = weight.expand(shape[:-1])
    checks.shape(name, weight, tuple(shape[:-1]), "one weight a row of student")
    checks.same_device(student=student, **{name: weight})
    return None, weight.reshape(-1).to(statistics_dtype(student.dtype)), mask


def _check_mask(name: str, mask: Tensor, shape: torch.Size, student: Tensor) -> None:
    checks.tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}.dtype={mask.dtype}: must be bool, True where a row counts")
    checks.shape(name, mask, tuple(shape[:-1]), "one element a row of student")
    checks.same_device(student=student, **{name: mask})


def masked(weight: Tensor | None, mask: Tensor, student: Tensor) -> Tensor:
    """Weights [B], 0 where ``mask`` [...] is False."""
    mask = mask.reshape(-1)
    if weight is None:
        return mask.to(statistics_dtype(student.dtype))
    return torch.where(mask, weight, 0.0)


def weights_of(
    weight: float | Tensor | None, mask: Tensor | None, shape: torch.Size, student: Tensor, reduction: Reduction
) -> tuple[float | None, Tensor | None, Reduction, int, Tensor | int | None]:
    """How the rows of a loss are weighed and put together.

    A number that is yet to be checked and goes into the factor of the rows; weights [B] or None; the reduction; what
    divides that factor; and what divides the result, where no factor can have it.
    """
    if len(shape) == 2 and mask is None and not isinstance(weight, Tensor):
        return weight, None, reduction, 1, None
    rows = None
    if mask is not None or isinstance(weight, Tensor):
        weight, rows, mask = weight_of("weight", weight, mask, shape, student)
        if mask is not None:
            rows = masked(rows, mask, student)
            if reduction in ("mean", "batchmean"):
                left = mask.flatten(1).any(1) if reduction == "batchmean" and mask.dim() > 1 else mask
                return weight, rows, "sum", 1, left.sum().clamp(min=1)
    if reduction == "batchmean" and len(shape) != 2:
        batch = max(shape[0], 1) if len(shape) > 1 else 1
        if torch.compiler.is_compiling():  # in which a number made of a size would be that of one size
            return weight, rows, "sum", 1, batch
        return weight, rows, "sum", batch, None
    return weight, rows, reduction, 1, None


def finished(loss: Tensor, size: Tensor | int | None, reduction: Reduction, shape: torch.Size) -> Tensor:
    """The result in its size and shape."""
    if size is not None:
        return loss / size
    return loss.view(shape[:-1]) if reduction == "none" and len(shape) != 2 else loss


def is_number(value: Tensor) -> bool:
    """Whether a tensor is as good as the number that it holds: nobody waits for it, nobody wants its gradient."""
    plain = value.dim() == 0 and value.device.type == "cpu" and not value.requires_grad
    return plain and not torch.compiler.is_compiling() and not backends.transforming()


def temperature_of(temperature: Tensor, shape: torch.Size, student: Tensor) -> float | Tensor:
    """A number, or the tensor, [] or [B], that the reference computes with."""
    if is_number(temperature):
        return checks.positive("temperature", temperature)
    checks.floating("temperature", temperature)
    if temperature.dim() != 0:
        checks.shape(
            "temperature", temperature, tuple(shape[:-1]), "one temperature a row of student, or be one number"
        )
        temperature = temperature.reshape(-1)
    if temperature.device != student.device and not (temperature.dim() == 0 and temperature.device.type == "cpu"):
        checks.same_device(student=student, temperature=temperature)
    if looks(temperature) and not (temperature > 0).all():
        raise ValueError("temperature: must be above 0 everywhere")
    return temperature


def looks(values: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device, and are there at all."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling() and not backends.transforming()
