"""Distillation on a clean and an augmented view of each image, the latter weighted by the teacher's consistency."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from amkd_fast import backends, checks
from amkd_fast.ops import schemas
from amkd_fast.ops.kl import scalars
from amkd_fast.ops.kl.consistency import reference
from amkd_fast.ops.kl.reference import statistics_dtype
from amkd_fast.ops.row_loss import RowLoss, by_reference, operators, row_loss

# Statistics that the forward operator leaves for the backward one, field by field ([FIELDS, B], flat), then the TAIL:
# the means of both views. csrc/kl/consistency.h has the same list.
FIELDS = 9  # clean: student max, student log-sum, teacher max, teacher log-sum; the same augmented; confidence
TAIL = 2


def _fake_forward(student, teacher, augmented_student, augmented_teacher, temperature, row_scale):
    dtype = statistics_dtype(student.dtype)
    return student.new_empty((), dtype=dtype), student.new_empty(FIELDS * student.shape[0] + TAIL, dtype=dtype)


def _fake_backward(grad_total, student, *_):
    return student.new_empty(student.shape), student.new_empty(student.shape)


def _loss(*call):
    return reference.loss(*call)[0]


schemas.register("kl_consistency_forward", _fake_forward, "amkd_fast.ops.kl.consistency.triton:launch_forward")
schemas.register("kl_consistency_backward", _fake_backward, "amkd_fast.ops.kl.consistency.triton:launch_backward")
# The backward operator computes the probabilities of both views again, from the statistics, in one launch.
_LOSS = RowLoss((0, 2), by_reference(_loss), tensors=4, numbers=2)
_OPERATORS = operators(_LOSS, "kl_consistency_forward", "kl_consistency_backward")


class ConsistencyKL(NamedTuple):
    """What :func:`consistency_kl` returns; ``total`` has the graph, the others are for logging."""

    total: Tensor
    clean: Tensor
    augmented: Tensor
    confidence: Tensor


def consistency_kl(
    student: Tensor,
    teacher: Tensor,
    augmented_student: Tensor,
    augmented_teacher: Tensor,
    temperature: float = 4.0,
    *,
    scale_by_t2: bool = True,
) -> ConsistencyKL:
    r"""Distil clean and augmented views of the same images; the teacher's own consistency weighs the augmented ones.

    With :math:`KL_v = KL(σ(z_{t,v}/T)‖σ(z_{s,v}/T))` of a row in view v and the confidence
    :math:`w = 1 + \cos(z_{t,clean}, z_{t,augmented})`, between 0 and 2,
    ``total`` is :math:`T²·½[\mathrm{mean}\,KL_{clean} + \mathrm{mean}\,w\,KL_{augmented}]`. An augmentation that the
    teacher does not recognise so counts for little.

    A class whose logit is −inf in both networks is masked out, and −inf counts as 0 in the cosine. A teacher's row of
    zeros has no direction: its cosine is 0. A NaN or +inf logit makes every mean that its row enters NaN.

    Args:
        student: Logits of the clean images [B, K] of any strides, fp32, fp64, fp16 or bf16; K ≥ 1.
        teacher: The teacher's of the same images [B, K]. Where dtypes differ all are promoted to the common one.
        augmented_student: Logits of the augmented images [B, K], row by row those of the clean ones.
        augmented_teacher: The teacher's of the same images [B, K].
        temperature: T > 0 that divides all logits; the cosine is of the logits as they are.
        scale_by_t2: Multiply by T².

    Returns:
        ``ConsistencyKL(total, clean, augmented, confidence)`` in fp32 (fp64 for fp64 logits): scalars and w [B].
        ``clean`` and ``augmented`` (weighted by w) are the two means with T², so that
        ``total = ½ (clean + augmented)``; they and ``confidence`` carry no graph. With no rows all are 0. Gradients of
        ``total`` flow to both students in one pass, and to the teachers (through the confidence too) where they require
        one; those come from the reference.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: A shape, device or value breaks the rules above.

    Source:
        Li et al., joint data augmentation and cosine-confidence distillation (2022).

    Example:
        >>> import torch, amkd_fast as af
        >>> student, augmented = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
        >>> teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> seen = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]])  # another class in the second image
        >>> loss = af.consistency_kl(student, teacher, augmented, seen, temperature=1.0)
        >>> loss.total.backward()
        >>> loss.confidence
        tensor([2., 1.])
        >>> f"{loss.clean.item():.4f} {loss.augmented.item():.4f} {loss.total.item():.4f}"
        '0.2782 0.3398 0.3090'
    """
    tensors = _logits(student, teacher, augmented_student, augmented_teacher)
    rows = tensors[0].shape[0]
    numbers = scalars.of_divergence(temperature, "forward", 0.5, None, bool(scale_by_t2), "mean", 1)
    temperature, _, _, row_scale, *_ = numbers
    name = backends.select("kl", tensors[0].device.type, function="consistency_kl")
    if name == "reference":
        return ConsistencyKL(*reference.loss(*tensors, temperature, row_scale))
    total, stats = row_loss(_OPERATORS[name], (temperature, row_scale), *tensors)
    return ConsistencyKL(total, *_parts(stats, rows))


def _logits(student: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The four logits, checked, in one dtype."""
    checks.floating("student", student)
    shape, dtype = student.shape, student.dtype
    if len(shape) != 2 or shape[1] == 0:
        raise ValueError(f"student.shape={tuple(shape)}: must be [B, K] with at least one class")
    one_dtype = True
    for name, other in zip(("teacher", "augmented_student", "augmented_teacher"), others, strict=True):
        checks.floating(name, other)
        if other.shape != shape:
            checks.shape(name, other, tuple(shape), "the shape of student")
        if other.device != student.device:
            checks.same_device(student=student, **{name: other})
        one_dtype = one_dtype and other.dtype == dtype
    if not one_dtype:
        for other in others:
            dtype = torch.promote_types(dtype, other.dtype)
        return tuple(z.to(dtype) for z in (student, *others))
    return (student, *others)


def _parts(stats: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of the clean rows, that of the augmented ones, and the confidence, out of the statistics."""
    return stats.select(0, -2), stats.select(0, -1), stats.narrow(0, (FIELDS - 1) * rows, rows)
